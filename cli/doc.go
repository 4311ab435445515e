// Package cli is the injector offline: it reviews manifests. [Inject] prints them after injection,
// and [Lint] prints what is wrong with them:
//
//	options := cli.Options{Files: []string{"deploy/"}, Stdin: os.Stdin}
//	status, err := cli.Inject(ctx, options, false, os.Stdout, os.Stderr)
//	status, err = cli.Lint(ctx, options, cli.Text, os.Stdout, os.Stderr)
//	os.Exit(int(status))
//
// Lookups use the objects in the manifests, then those of Options.Facts, and then Options.Cluster.
//
// Inject injects pods, and the pod template of a workload, so that the output works in a cluster
// without the injector. It changes only what injection needs: comments, quotes and the order of keys
// stay, and documents without injection stay byte for byte the same.
//
// Lint judges the pod templates of every kind, and looks through all documents for keys of the
// injector that have no effect where they are.
//
// The package parses no flags and does not connect to a cluster. All rules are in the packages below
// core/.
package cli
