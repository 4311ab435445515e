package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

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
	object := f.String("object", "",
		"list what uses this object: VAULT/NAME or VAULT/TYPE:NAME, TYPE is secret, key or cert")
	format := outputFlag(cmd, inventory.Formats)
	reader := readerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *everywhere && *namespace != "" {
			return errors.New("--namespace: must come without --all-namespaces")
		}
		if *namespace != "" {
			if err := checkNamespace("namespace", *namespace); err != nil {
				return err
			}
		}
		format, err := format()
		if err != nil {
			return err
		}
		var ref inventory.Ref
		if *object != "" {
			if ref, err = inventory.ParseRef(*object); err != nil {
				return fmt.Errorf("--object: %w", err)
			}
		}
		reader, err := reader()
		if err != nil {
			return err
		}
		in := *namespace
		if in == "" && !*everywhere {
			in = contextNamespace(cmd)
		}
		found, denied, err := inventory.Read(cmd.Context(), reader, in)
		if err != nil {
			return err
		}
		for _, lacks := range denied {
			*status = cli.Unusable
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", report.Escape(lacks.Error()), inventory.Missing(lacks))
		}
		if *object == "" {
			return found.Print(cmd.OutOrStdout(), format)
		}
		found = found.Of(ref)
		found.Flags = selection(cmd, "--context")
		found.Rotation = inventory.RotationOff
		on, err := check.Rotation(cmd.Context(), reader)
		if lacks, ok := errors.AsType[*kube.Denied](err); ok {
			*status = cli.Unusable
			found.Rotation = inventory.RotationUnknown
			fmt.Fprintf(cmd.ErrOrStderr(), "%v: whether the driver's rotation is on is not known\n", lacks)
		} else if err != nil {
			return err
		} else if on {
			found.Rotation = inventory.RotationOn
		}
		return found.PrintEffects(cmd.OutOrStdout(), ref, format)
	}
	return cmd
}
