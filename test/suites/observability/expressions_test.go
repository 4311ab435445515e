package observability_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	admissionmetrics "k8s.io/apiserver/pkg/admission/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// targetLabels are the labels that Prometheus or its operator adds to each series.
var targetLabels = []string{"cluster", "namespace", "pod", "job", "instance"}

// known returns the metrics that expressions may use: those that an injector exposes before its
// first review, and those that the API server's code exposes for a webhook that it called, that
// failed and that was skipped.
func known(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	families := scrape(t)
	const webhook = "pods.akv-injector.io"
	attributes := admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, "", "", schema.GroupVersionResource{}, "", admission.Create, nil, false, nil)
	admissionmetrics.Metrics.ObserveWebhook(t.Context(), webhook, 0, false, attributes, "admit", 200)
	admissionmetrics.Metrics.ObserveWebhookRejection(t.Context(), webhook, "admit", "CREATE", admissionmetrics.WebhookRejectionCallingWebhookError, 0)
	admissionmetrics.Metrics.ObserveWebhookFailOpen(t.Context(), webhook, "admit")
	gathered, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range gathered {
		if strings.HasPrefix(family.GetName(), "apiserver_admission_webhook_") {
			families[family.GetName()] = family
		}
	}
	return families
}

// check returns an error for each series and label that an expression uses and that no metric has.
func check(expression string, families map[string]*dto.MetricFamily) []error {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return []error{fmt.Errorf("parse %s: %w", expression, err)}
	}
	var errs []error
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			if !slices.ContainsFunc(series(families, node.Name), func(s map[string]string) bool { return matches(s, node.LabelMatchers) }) {
				errs = append(errs, fmt.Errorf("%s: no such series", node))
			}
		case *parser.AggregateExpr:
			for _, label := range node.Grouping {
				if !slices.Contains(targetLabels, label) && !hasLabel(node.Expr, label, families) {
					errs = append(errs, fmt.Errorf("%s: no series in it has label %s", node, label))
				}
			}
		}
		return nil
	})
	return errs
}

// series returns the labels of each series of a metric, or of the buckets of a histogram.
func series(families map[string]*dto.MetricFamily, name string) []map[string]string {
	family := families[name]
	if base, ok := strings.CutSuffix(name, "_bucket"); ok && families[base].GetType() == dto.MetricType_HISTOGRAM {
		family = families[base]
	}
	var list []map[string]string
	for _, metric := range family.GetMetric() {
		of := map[string]string{}
		for _, label := range metric.GetLabel() {
			of[label.GetName()] = label.GetValue()
		}
		if metric.GetHistogram() != nil {
			of[labels.BucketLabel] = "+Inf"
		}
		list = append(list, of)
	}
	return list
}

// matches reports whether matchers select a series. Target labels are ignored.
func matches(of map[string]string, matchers []*labels.Matcher) bool {
	return !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool {
		_, has := of[m.Name]
		return m.Name != model.MetricNameLabel && !slices.Contains(targetLabels, m.Name) && (!has || !m.Matches(of[m.Name]))
	})
}

func hasLabel(expr parser.Expr, label string, families map[string]*dto.MetricFamily) bool {
	found := false
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			found = found || slices.ContainsFunc(series(families, selector.Name), func(s map[string]string) bool { _, has := s[label]; return has })
		}
		return nil
	})
	return found
}
