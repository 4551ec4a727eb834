package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server"
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
	slices.SortStableFunc(commands, func(a, b *cobra.Command) int { // what the program is for comes first
		return cmp.Compare(b2i(a.Name() != "serve"), b2i(b.Name() != "serve"))
	})
	for _, c := range commands {
		if c.Hidden || !c.HasParent() || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		fmt.Fprintf(w, "\n## %s %s\n\n%s\n", root.Name(), c.Name(), strings.TrimSpace(longOf(c)))
		if c.Example != "" {
			fmt.Fprintf(w, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimSpace(c.Example), "\n  ", "\n"))
		}
		if c.Name() == "serve" {
			writeSettings(w)
		} else {
			writeFlags(w, c.LocalFlags())
		}
		for _, below := range c.Commands() { // its flags are those of the command
			fmt.Fprintf(w, "\n### %s\n\n%s\n\n```sh\n%s\n```\n", below.CommandPath(), strings.TrimSpace(longOf(below)), strings.TrimSpace(below.Example))
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

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func longOf(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}

// writeFlags writes a table of a command's flags.
func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(w, "\n| flag | default | what |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "0" {
			def = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(w, "| `--%s` | %s | %s |\n", f.Name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}

// writeSettings writes a table of the configuration's tags, in the struct's order.
func writeSettings(w io.Writer) {
	fmt.Fprintf(w, "\n| flag, key in the file | default | what |\n|---|---|---|\n")
	t := reflect.TypeFor[server.Config]()
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		def := tag.Get("default")
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(w, "| `--%s` | %s | %s |\n", tag.Get("flag"), def, strings.ReplaceAll(tag.Get("help"), "|", "\\|"))
	}
	fmt.Fprintf(w, "| `--config` | | %s |\n", configHelp)
}
