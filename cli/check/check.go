// Package check finds out whether the injector and everything that acts on its output work: the API
// server, the webhook configurations, the replicas, the Secrets Store CSI driver and its Azure
// provider, identities, and the namespaces that opted in.
//
//	r, err := check.Installation(ctx, check.Options{Reader: reader, Version: "v1.2.3"})
//	err = r.Print(os.Stdout, report.Text)
//
// It reads all state first and judges it afterwards. What the user may not read is unknown, and the
// rest is checked. It writes nothing to the cluster: access reviews are not stored, and a pod is
// only created as a dry run, if the user names a namespace for that.
package check

import (
	"context"
	"errors"
	"slices"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
)

const (
	// name is the name of the configurations, of the Deployment, its Service and its Certificate.
	name = kube.Name
	// defaultNamespace is the namespace of an installation that no configuration names.
	defaultNamespace = name + "-system"
	// selector selects the Deployment and its pods.
	selector = kube.Selector
)

// Options are the options of [Preflight] and [Installation].
type Options struct {
	// Reader reads the cluster; required.
	Reader *kube.Reader
	// Command are the words by which the user calls this program, for the commands that a report
	// suggests; empty for akv-injector.
	Command []string
	// Version is the version of this program, with which that of the replicas is compared.
	Version string
	// Namespace is the namespace of the installation. If empty, it is the one that the webhook
	// configurations call, else akv-injector-system.
	Namespace string
	// AllNamespaces also checks the workloads and pods of all namespaces, and Namespaces those of
	// some.
	AllNamespaces bool
	Namespaces    []string
	// DryRunIn is the namespace in which a pod is created as a dry run; empty for none.
	DryRunIn string
	// Defaults returns the defaults that the arguments of a replica set; required if namespaces
	// are checked.
	Defaults func(args []string) (inject.Defaults, error)
}

// command returns the words of a command of this program.
func (o *Options) command(words ...string) []string {
	program := o.Command
	if len(program) == 0 {
		program = []string{name}
	}
	return slices.Concat(program, words)
}

// Preflight checks whether the injector can be installed.
func Preflight(ctx context.Context, o Options) (*report.Report, error) {
	c, err := readCluster(ctx, &o)
	if err != nil {
		return nil, err
	}
	c.locate()
	r := &report.Report{Independent: true}
	c.checkVersion(r.Section("Kubernetes"))
	c.checkRights(ctx, r.Section("Your rights"))
	c.checkCertManager(ctx, r.Section("cert-manager"))
	c.checkOthers(r.Section("Webhook configurations"))
	c.checkDriver(r.Section("Secrets Store CSI driver"))
	c.checkIdentities(r.Section("Identities"))
	return r, nil
}

// Installation checks the injector that is installed, and then the namespaces that the options
// select.
func Installation(ctx context.Context, o Options) (*report.Report, error) {
	c, err := readCluster(ctx, &o)
	if err != nil {
		return nil, err
	}
	c.readInstallation(ctx)
	r := &report.Report{Independent: true}
	c.checkVersion(r.Section("Kubernetes"))
	if c.checkConfigurations(r.Section("Webhook configurations")) {
		c.checkInjector(r.Section("Injector"))
		c.checkCertificate(ctx, r.Section("Serving certificate"))
	}
	c.checkDryRun(ctx, r.Section("Creation of a pod"))
	c.checkDriver(r.Section("Secrets Store CSI driver"))
	c.checkIdentities(r.Section("Identities"))
	if o.AllNamespaces || len(o.Namespaces) > 0 {
		err = c.checkNamespaces(ctx, r)
	}
	return r, err
}

// known is what was read of the cluster, or why it could not be read.
type known[T any] struct {
	value T
	err   error
}

// unknown adds a line if the value could not be read. It reports whether it did.
func (k known[T]) unknown(s *report.Section, what string) bool {
	return unknown(s, what, k.err)
}

// unknown adds a line about what an error left unknown. It reports whether there is an error.
func unknown(s *report.Section, what string, err error) bool {
	if err == nil {
		return false
	}
	line := s.Unknown("%s: not known: %v", what, err)
	if denied, ok := errors.AsType[*kube.Denied](err); ok {
		line.Run(denied.Check()...)
	}
	return true
}
