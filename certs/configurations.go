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
	"sync"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	admissionregistrationinformers "k8s.io/client-go/informers/admissionregistration/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// errUnread is the end of what synced says before a first answer.
var errUnread = errors.New("has not been read yet")

// attempts is how often a write that met another one is tried again before it is left to the next round.
const attempts = 5

// currentTime is what crypto/x509 says of the clock, by which one and the same trouble would be news every second.
var currentTime = regexp.MustCompile(`current time \S+ is`)

// A configuration is what this package reads of a webhook configuration, of either kind.
type configuration struct {
	kind, name, resourceVersion string
	webhooks                    []webhook
}

// A webhook is one entry of a configuration.
type webhook struct {
	name     string
	host     string // the name or address that the API server expects in the certificate
	caBundle []byte // empty: the API server trusts the roots of its own system
}

// callersOf are the webhooks of several configurations.
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

// configurations watches our own webhook configurations, each by name, so that RBAC can be limited to them.
type configurations struct {
	client   kubernetes.Interface
	watchers []*watcher
}

func newConfigurations(client kubernetes.Interface, names []string) *configurations {
	c := &configurations{client: client}
	if client == nil {
		return c
	}
	for _, name := range names {
		c.watchers = append(c.watchers,
			newWatcher("MutatingWebhookConfiguration "+name, name,
				admissionregistrationinformers.NewFilteredMutatingWebhookConfigurationInformer(client, 0, nil, only(name))),
			newWatcher("ValidatingWebhookConfiguration "+name, name,
				admissionregistrationinformers.NewFilteredValidatingWebhookConfigurationInformer(client, 0, nil, only(name))))
	}
	return c
}

// synced says which configuration has not been read yet, and why.
func (c *configurations) synced() error {
	var errs []error
	for _, w := range c.watchers {
		errs = append(errs, w.synced())
	}
	return errors.Join(errs...)
}

// known are the configurations that exist, as last seen.
func (c *configurations) known() []configuration {
	var known []configuration
	for _, w := range c.watchers {
		if obj := w.object(); obj != nil {
			known = append(known, readConfiguration(obj))
		}
	}
	return known
}

// mismatches has an error for each webhook whose API server would not accept cert at that time. It speaks of cert as what.
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

// contain says whether every webhook of every configuration that exists trusts ca.
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

// setBundle writes the CA bundle of every webhook of conf, and nothing else of it: selectors belong to whoever
// installed the configuration, and AKS adds to them. bundle makes the wanted bundle from all those that are there.
func (c *configurations) setBundle(ctx context.Context, conf configuration, bundle func(present []byte) []byte) error {
	for range attempts {
		var present []byte
		for _, w := range conf.webhooks {
			present = append(append(present, w.caBundle...), '\n')
		}
		want := bundle(present)
		// The indexes below are right only in the version that was read.
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
		// A failed test is a 422, like a patch that the API server finds invalid; only the version tells them apart.
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
		_, err = admission.MutatingWebhookConfigurations().Patch(ctx, conf.name, types.JSONPatchType, body, metav1.PatchOptions{})
	} else {
		_, err = admission.ValidatingWebhookConfigurations().Patch(ctx, conf.name, types.JSONPatchType, body, metav1.PatchOptions{})
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

// A watcher follows the one object of a name.
type watcher struct {
	cache.SharedIndexInformer
	what, key string

	mu  sync.Mutex
	err error // of the last list or watch
}

func newWatcher(what, key string, informer cache.SharedIndexInformer) *watcher {
	return &watcher{SharedIndexInformer: informer, what: what, key: key}
}

// run follows the object until ctx ends and calls changed after each change.
func (w *watcher) run(ctx context.Context, changed func()) error {
	if err := w.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
		if !w.HasSynced() || apierrors.IsForbidden(err) { // which waiting does not mend
			log.FromContext(ctx).Error(err, "object not readable", "object", w.what)
			return
		}
		log.FromContext(ctx).V(1).Info("watch interrupted", "object", w.what, "reason", err.Error())
	}); err != nil {
		return fmt.Errorf("watch %s: %w", w.what, err)
	}
	if _, err := w.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(any, any) { changed() },
		DeleteFunc: func(any) { changed() },
	}); err != nil {
		return fmt.Errorf("watch %s: %w", w.what, err)
	}
	w.RunWithContext(ctx)
	return nil
}

// synced says why the object has not been read yet.
func (w *watcher) synced() error {
	if w.HasSynced() {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return fmt.Errorf("%s could not be read; it needs get, list and watch on it: %w", w.what, w.err)
	}
	return fmt.Errorf("%s %w", w.what, errUnread)
}

// object is nil while there is none.
func (w *watcher) object() any {
	obj, exists, err := w.GetStore().GetByKey(w.key)
	if err != nil || !exists {
		return nil
	}
	return obj
}

// only limits a list or watch to one name, which is what RBAC's resourceNames need to allow it.
func only(name string) func(*metav1.ListOptions) {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return func(o *metav1.ListOptions) { o.FieldSelector = selector }
}
