package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// attempts is the number of attempts of a write that conflicts with others, before the next round
// tries again.
const attempts = 5

// currentTime matches the time in errors of crypto/x509, which would make the same problem a new
// message every second.
var currentTime = regexp.MustCompile(`current time \S+ is`)

// A configuration has the fields of a webhook configuration, of either kind, that this package
// needs.
type configuration struct {
	kind, name, resourceVersion string
	webhooks                    []webhook
}

// A webhook is one entry of a configuration.
type webhook struct {
	name     string
	host     string // the name or address that the API server expects in the certificate
	caBundle []byte // empty: the API server uses the root CAs of its system
}

// callersOf returns the webhooks of several configurations.
func callersOf(known []configuration) []webhook {
	var all []webhook
	for _, conf := range known {
		all = append(all, conf.webhooks...)
	}
	return all
}

func (w webhook) equal(v webhook) bool {
	return w.name == v.name && w.host == v.host && bytes.Equal(w.caBundle, v.caBundle)
}

func (c configuration) String() string { return c.kind + " " + c.name }

// configurations watches the injector's webhook configurations by name, so that RBAC can be limited
// to them.
type configurations struct {
	client   kubernetes.Interface
	watchers []*watcher
}

// newConfigurations returns watchers that call changed; none for a nil client.
func newConfigurations(client kubernetes.Interface, names []string, changed func()) *configurations {
	c := &configurations{client: client}
	if client == nil {
		return c
	}
	admission := client.AdmissionregistrationV1()
	for _, name := range names {
		key := types.NamespacedName{Name: name}
		c.watchers = append(c.watchers,
			newWatcher("MutatingWebhookConfiguration "+name, key, client, admission.MutatingWebhookConfigurations(),
				&admissionregistrationv1.MutatingWebhookConfiguration{}, changed),
			newWatcher("ValidatingWebhookConfiguration "+name, key, client, admission.ValidatingWebhookConfigurations(),
				&admissionregistrationv1.ValidatingWebhookConfiguration{}, changed))
	}
	return c
}

// synced returns which configurations have not been read yet, and why, or nil.
func (c *configurations) synced() error {
	var errs []error
	for _, w := range c.watchers {
		errs = append(errs, w.synced())
	}
	return errors.Join(errs...)
}

// known returns the configurations that exist, as the watchers have them.
func (c *configurations) known() []configuration {
	var known []configuration
	for _, w := range c.watchers {
		if obj := w.object(); obj != nil {
			known = append(known, readConfiguration(obj))
		}
	}
	return known
}

// mismatches returns an error for each webhook for which the API server would not accept cert at
// that time. The errors call cert what.
func mismatches(known []configuration, what string, cert *tls.Certificate, now time.Time) []error {
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if ca, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(ca)
		}
	}
	var errs []error
	for _, conf := range known {
		for _, w := range conf.webhooks {
			var roots *x509.CertPool
			if len(w.caBundle) > 0 {
				roots = x509.NewCertPool()
				roots.AppendCertsFromPEM(w.caBundle)
			}
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{
				DNSName: w.host, Roots: roots, Intermediates: intermediates, CurrentTime: now,
			}); err != nil {
				errs = append(errs, fmt.Errorf("the CA bundle of %s, webhook %s, does not verify %s: %s",
					conf, w.name, what, currentTime.ReplaceAllString(err.Error(), "now is")))
			}
		}
	}
	return errs
}

// contain reports whether the CA bundle of every webhook of every existing configuration has ca.
func (c *configurations) contain(ca *x509.Certificate) bool {
	for _, conf := range c.known() {
		for _, w := range conf.webhooks {
			if !containsCertificate(parseCertificates(w.caBundle), ca) {
				return false
			}
		}
	}
	return true
}

// setBundle writes the CA bundle of every webhook of conf. It writes no other field: the selectors
// are the installer's, and AKS adds to them. Bundle returns the wanted bundle, given all present
// ones.
func (c *configurations) setBundle(ctx context.Context, conf configuration, bundle func(present []byte) []byte) error {
	for range attempts {
		var present []byte
		for _, w := range conf.webhooks {
			present = append(append(present, w.caBundle...), '\n')
		}
		want := bundle(present)
		// The indexes are valid only in the version that was read.
		patch := []jsonpatch.Operation{jsonpatch.NewOperation("test", "/metadata/resourceVersion", conf.resourceVersion)}
		for i, w := range conf.webhooks {
			if !bytes.Equal(w.caBundle, want) {
				patch = append(patch, jsonpatch.NewOperation("add", "/webhooks/"+strconv.Itoa(i)+"/clientConfig/caBundle", want))
			}
		}
		if len(patch) == 1 {
			return nil
		}
		err := c.patch(ctx, conf, patch)
		switch {
		case err == nil:
			log.FromContext(ctx).Info("CA bundle written", "kind", conf.kind, "name", conf.name)
			return nil
		case apierrors.IsNotFound(err):
			return nil
		// The API server answers 422 both for a failed test operation and for an invalid
		// patch. The version shows which it was.
		case !apierrors.IsConflict(err) && !apierrors.IsInvalid(err):
			return fmt.Errorf("patch the CA bundle of %s: %w", conf, err)
		}
		live, getErr := c.live(ctx, conf)
		if apierrors.IsNotFound(getErr) {
			return nil
		}
		if getErr != nil {
			return fmt.Errorf("read %s again: %w", conf, getErr)
		}
		if live.resourceVersion == conf.resourceVersion {
			return fmt.Errorf("patch the CA bundle of %s: %w", conf, err)
		}
		conf = live
	}
	return fmt.Errorf("patch the CA bundle of %s: others changed it %d times meanwhile", conf, attempts)
}

func (c *configurations) patch(ctx context.Context, conf configuration, patch []jsonpatch.Operation) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	admission := c.client.AdmissionregistrationV1()
	if conf.kind == "MutatingWebhookConfiguration" {
		_, err = admission.MutatingWebhookConfigurations().
			Patch(ctx, conf.name, types.JSONPatchType, body, metav1.PatchOptions{})
	} else {
		_, err = admission.ValidatingWebhookConfigurations().
			Patch(ctx, conf.name, types.JSONPatchType, body, metav1.PatchOptions{})
	}
	return err
}

func (c *configurations) live(ctx context.Context, conf configuration) (configuration, error) {
	admission := c.client.AdmissionregistrationV1()
	var obj runtime.Object
	var err error
	if conf.kind == "MutatingWebhookConfiguration" {
		obj, err = admission.MutatingWebhookConfigurations().Get(ctx, conf.name, metav1.GetOptions{})
	} else {
		obj, err = admission.ValidatingWebhookConfigurations().Get(ctx, conf.name, metav1.GetOptions{})
	}
	if err != nil {
		return configuration{}, err
	}
	return readConfiguration(obj), nil
}

func readConfiguration(obj any) configuration {
	var conf configuration
	switch obj := obj.(type) {
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		conf = configuration{kind: "MutatingWebhookConfiguration", name: obj.Name, resourceVersion: obj.ResourceVersion}
		for _, w := range obj.Webhooks {
			conf.webhooks = append(conf.webhooks, webhook{w.Name, host(w.ClientConfig), w.ClientConfig.CABundle})
		}
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		conf = configuration{kind: "ValidatingWebhookConfiguration", name: obj.Name, resourceVersion: obj.ResourceVersion}
		for _, w := range obj.Webhooks {
			conf.webhooks = append(conf.webhooks, webhook{w.Name, host(w.ClientConfig), w.ClientConfig.CABundle})
		}
	}
	return conf
}

func host(c admissionregistrationv1.WebhookClientConfig) string {
	switch {
	case c.Service != nil:
		return c.Service.Name + "." + c.Service.Namespace + ".svc"
	case c.URL != nil:
		if u, err := url.Parse(*c.URL); err == nil {
			return u.Hostname()
		}
	}
	return ""
}
