package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/akv-injector/akv-injector/certs"
	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/cluster/registration"
	"github.com/akv-injector/akv-injector/controller"
	"github.com/akv-injector/akv-injector/controller/canary"
	"github.com/akv-injector/akv-injector/controller/findings"
	"github.com/akv-injector/akv-injector/controller/rotation"
	"github.com/akv-injector/akv-injector/webhook"
	"github.com/akv-injector/akv-injector/webhook/serving"
)

// metrics writes the table of the injector's own metrics. It registers them like the command serve,
// but starts nothing.
func metrics(out *bytes.Buffer) error {
	config, registered := &rest.Config{Host: "127.0.0.1:1"}, &registry{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	live, err := cluster.NewLive(config)
	if err != nil {
		return err
	}
	cached := cluster.NewCache(live, logr.Discard())
	cached.Register(registered)
	webhook.NewMetrics(registered)
	serving.NewCallers(false, registered)
	registration.NewWatcher(registration.Options{Client: client, Metrics: registered})
	registration.NewExposure(registration.Options{Client: client, Metrics: registered})
	if _, err := certs.Files(".", certs.Options{Client: client, Metrics: registered}); err != nil {
		return err
	}
	mgr, err := manager.New(config, manager.Options{
		Logger:  logr.Discard(),
		Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	options := controller.Options{Live: live, Cache: cached, Log: logr.Discard(), Metrics: registered}
	if err := controller.AddTo(mgr, options); err != nil {
		return err
	}
	findings.New(findings.Options{Live: live, Cache: cached, Client: client, Log: logr.Discard(), Metrics: registered})
	canary.New(canary.Options{Client: client, Metrics: registered})
	rotation.New(rotation.Options{Live: live, Cache: cached, Metrics: registered})
	if registered.err != nil {
		return registered.err
	}
	slices.SortFunc(registered.metrics, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
	registered.metrics = slices.CompactFunc(registered.metrics, func(a, b metric) bool { return a.name == b.name })
	out.WriteString("| metric | labels | what it says |\n|---|---|---|\n")
	for _, m := range registered.metrics {
		fmt.Fprintf(out, "| `%s` | %s | %s |\n", m.name, m.labels, m.help)
	}
	return nil
}

type metric struct{ name, labels, help string }

// registry records the registered metrics. A real registry only returns metrics that have a value.
type registry struct {
	metrics []metric
	err     error
}

// description matches the text of a prometheus.Desc, which has no accessors.
var description = regexp.MustCompile(`^Desc{fqName: ("[^"]*"), help: ("(?:[^"\\]|\\.)*"), unit: "[^"]*", ` +
	`constLabels: {(.*)}, variableLabels: {(.*)}}$`)

// label matches the name of a label and its value, if it is constant.
var label = regexp.MustCompile(`([a-z_]+)(="[^"]*")?`)

// Register implements [prometheus.Registerer].
func (r *registry) Register(c prometheus.Collector) error {
	described := make(chan *prometheus.Desc)
	go func() {
		defer close(described)
		c.Describe(described)
	}()
	for desc := range described {
		parts := description.FindStringSubmatch(desc.String())
		if parts == nil {
			r.err = errors.Join(r.err, fmt.Errorf("read metric %s: its text has an unexpected format", desc))
			continue
		}
		name, err := strconv.Unquote(parts[1])
		help, helpErr := strconv.Unquote(parts[2])
		r.err = errors.Join(r.err, err, helpErr)
		var labels []string
		for _, found := range label.FindAllStringSubmatch(parts[3]+","+parts[4], -1) {
			labels = append(labels, "`"+found[1]+"`")
		}
		r.metrics = append(r.metrics, metric{name, strings.Join(labels, ", "), help})
	}
	return nil
}

// MustRegister implements [prometheus.Registerer].
func (r *registry) MustRegister(list ...prometheus.Collector) {
	for _, c := range list {
		r.err = errors.Join(r.err, r.Register(c))
	}
}

// Unregister implements [prometheus.Registerer].
func (r *registry) Unregister(prometheus.Collector) bool { return false }
