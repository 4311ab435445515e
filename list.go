package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/check"
	"github.com/akv-injector/akv-injector/cli/inventory"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
)

func listCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List workloads with their identities and Key Vault objects", Args: cobra.NoArgs,
		Long: `List which workloads use which Key Vault objects: as which identity, from which class, in which
version, and as which files and env vars. The command follows the volumes of the Secrets Store CSI
driver and the Secrets that it syncs, whether the injector wrote them or you did. A workload without
pods is listed with what its next pod gets. Secrets are never read.

With --object, list only what uses one object, and what a rotation or a deletion of the object means
for it: files follow by themselves if the driver's rotation is on; env vars and files that are
mounted by subPath need a restart.

Text and wide have one line for each object of a workload; csv has one for each object of a pod.

Exit status: 0 fine, 2 wrong usage, or a part is missing because you lack a right; the rights are
named on standard error.`,
		Example: "  akv-injector list --namespace shop\n" +
			"  akv-injector list --all-namespaces -o csv > inventory.csv\n" +
			"  akv-injector list --all-namespaces --object shop-kv/db-password\n" +
			"  akv-injector list --object shop-kv/cert:edge -o json",
	}
	f := cmd.Flags()
	namespace := f.StringP("namespace", "n", "", "namespace (default: that of the context)")
	everywhere := f.BoolP("all-namespaces", "A", false, "list all namespaces")
	object := f.String("object", "", "list what uses this object: VAULT/NAME or VAULT/TYPE:NAME, TYPE is secret, key or cert")
	format := f.StringP("output", "o", string(inventory.Text), "output format: "+join(inventory.Formats...))
	if err := cmd.RegisterFlagCompletionFunc("output", values(inventory.Formats...)); err != nil {
		panic(err) // the flag exists
	}
	config := clusterFlags(cmd, "run in a pod")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case *everywhere && *namespace != "":
			return errors.New("--namespace: must come without --all-namespaces")
		case *namespace != "" && len(validation.IsDNS1123Label(*namespace)) > 0:
			return fmt.Errorf("--namespace: must be 1 to 63 lower case letters, digits and dashes, is %q", *namespace)
		case !slices.Contains(inventory.Formats, inventory.Format(*format)):
			return fmt.Errorf("--output: must be one of %s, is %q", join(inventory.Formats...), *format)
		}
		var ref inventory.Ref
		if *object != "" {
			var err error
			if ref, err = inventory.ParseRef(*object); err != nil {
				return fmt.Errorf("--object: %w", err)
			}
		}
		config, err := config()
		if err != nil {
			return err
		}
		reader, err := kube.NewReader(config)
		if err != nil {
			return fmt.Errorf("reach the cluster: %w", err)
		}
		in := *namespace
		if in == "" && !*everywhere {
			in = contextNamespace(cmd)
		}
		found, denied, err := inventory.Read(cmd.Context(), reader, in)
		if err != nil {
			return err
		}
		if *object == "" {
			err = found.Print(cmd.OutOrStdout(), inventory.Format(*format))
		} else {
			found = found.Of(ref)
			on, rotationErr := check.Rotation(cmd.Context(), reader)
			found.Rotation = inventory.RotationOff
			if lacks, ok := errors.AsType[*kube.Denied](rotationErr); ok {
				denied = append(denied, lacks)
				found.Rotation = inventory.RotationUnknown
			} else if rotationErr != nil {
				return rotationErr
			} else if on {
				found.Rotation = inventory.RotationOn
			}
			for _, flag := range []string{"context", "kubeconfig"} {
				if cmd.Flags().Changed(flag) {
					found.Flags = append(found.Flags, "--"+flag, cmd.Flag(flag).Value.String())
				}
			}
			err = found.PrintEffects(cmd.OutOrStdout(), ref, inventory.Format(*format))
		}
		if len(denied) > 0 {
			*status = cli.Unusable
		}
		for _, lacks := range denied {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", report.Escape(lacks.Error()), inventory.Missing(lacks))
		}
		return err
	}
	return cmd
}
