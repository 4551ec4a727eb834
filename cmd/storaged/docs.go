package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	storage "github.com/storaged/storaged"
)

func docsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "docs FILE",
		Short:  "Write docs/storaged.md from the settings",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var b strings.Builder
			writeDocs(&b, cmd.Root())
			if err := os.WriteFile(args[0], []byte(b.String()), 0o644); err != nil {
				return storage.E("write", storage.KindIO, args[0], err)
			}
			return nil
		},
	}
}

// writeDocs writes the manual in Markdown: the commands' own help, and the settings from the one struct.
func writeDocs(w io.Writer, root *cobra.Command) {
	fmt.Fprintf(w, "# storaged\n\n<!-- Written by \"go generate ./cmd/storaged\" from the commands' help and server.Config; do not edit. -->\n")
	commands := root.Commands()
	serve := slices.IndexFunc(commands, func(c *cobra.Command) bool { return c.Name() == "serve" })
	for _, c := range slices.Concat(commands[serve:serve+1], commands[:serve], commands[serve+1:]) { // what the program is for comes first
		if c.Hidden || !c.HasParent() || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		fmt.Fprintf(w, "\n## %s %s\n\n%s\n", root.Name(), c.Name(), strings.TrimSpace(cmp.Or(c.Long, c.Short+".")))
		if c.Example != "" {
			fmt.Fprintf(w, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimSpace(c.Example), "\n  ", "\n"))
		}
		c.Flags().SortFlags = false // they stand in the struct's order
		writeFlags(w, c.LocalFlags())
		for _, below := range c.Commands() { // its flags are those of the command
			fmt.Fprintf(w, "\n### %s\n\n%s\n\n```sh\n%s\n```\n", below.CommandPath(), strings.TrimSpace(cmp.Or(below.Long, below.Short+".")), strings.TrimSpace(below.Example))
		}
	}
	fmt.Fprintf(w, `
## Exit codes

| code | meaning |
|---|---|
| 0 | it was stopped in order, or has nothing to complain about |
| 2 | something that the operator gave is wrong: a flag, a file, an address that is in use |
| 3 | `+"`check`"+` has found damage, or a store is damaged so that it cannot be opened |
| 1 | anything else |
`)
}

// writeFlags writes a table of a command's flags.
func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	names := "flag"
	if flags.Lookup("config") != nil {
		names = "flag, key in the file"
	}
	fmt.Fprintf(w, "\n| %s | default | what |\n|---|---|---|\n", names)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		def := ""
		if !slices.Contains([]string{"", "[]", "0", "false"}, f.DefValue) {
			def = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(w, "| `--%s` | %s | %s |\n", f.Name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}
