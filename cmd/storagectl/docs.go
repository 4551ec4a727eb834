package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	storage "github.com/storaged/storaged"
)

// newDocs writes the documents that are made from the commands' help.
func newDocs(a *app) *cobra.Command {
	noun := newNoun("docs", "Write documents from this help",
		&cobra.Command{
			Use:   "markdown FILE",
			Short: "Write all help as one document",
			Args:  takes("FILE"),
			RunE: func(c *cobra.Command, args []string) error {
				var text bytes.Buffer
				writeMarkdown(&text, c.Root())
				return saveFile(args[0], text.Bytes())
			},
		},
		&cobra.Command{
			Use:   "man DIR",
			Short: "Write a manual page for every command",
			Args:  takes("DIR"),
			RunE: func(c *cobra.Command, args []string) error {
				c.Root().DisableAutoGenTag = true
				epoch := time.Unix(0, 0).UTC() // the same pages from the same sources
				header := &doc.GenManHeader{Section: "1", Source: "storaged", Manual: "storaged", Date: &epoch}
				err := os.MkdirAll(args[0], 0o755)
				if err == nil {
					err = doc.GenManTree(c.Root(), header, args[0])
				}
				if err != nil {
					return storage.E("write", storage.KindIO, args[0], err)
				}
				return nil
			},
		})
	noun.Hidden = true
	return noun
}

func saveFile(path string, text []byte) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		return storage.E("write", storage.KindIO, path, err)
	}
	return nil
}

// writeMarkdown writes the help of root and all that is below it.
func writeMarkdown(w io.Writer, root *cobra.Command) {
	fmt.Fprintf(w, "# storagectl\n\n<!-- Written by \"go generate ./cmd/storagectl\" from the commands' help; do not edit. -->\n\n")
	fmt.Fprintf(w, "```text\n%s\n```\n", root.Long)
	fmt.Fprintf(w, "\n## Flags of every command\n\n```text\n%s```\n", root.PersistentFlags().FlagUsages())
	for _, c := range root.Commands() {
		if c.IsAdditionalHelpTopicCommand() {
			fmt.Fprintf(w, "\n## %s\n\n```text\n%s\n```\n", c.Short, strings.TrimRight(c.Long, "\n"))
		}
	}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			writeCommand(w, c)
		}
	}
}

func writeCommand(w io.Writer, c *cobra.Command) {
	if !c.HasSubCommands() {
		writeUsage(w, c)
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n%s.\n", c.CommandPath(), c.Short)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			writeUsage(w, sub)
		}
	}
}

func writeUsage(w io.Writer, c *cobra.Command) {
	level := "##"
	if c.Parent() != c.Root() {
		level = "###"
	}
	fmt.Fprintf(w, "\n%s %s\n\n%s.\n\n```text\n%s\n", level, c.CommandPath(), c.Short, c.UseLine())
	if c.Long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.Long))
	}
	if c.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", strings.TrimRight(c.Example, "\n"))
	}
	if flags := c.NonInheritedFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(w, "\nFlags:\n%s", flags)
	}
	fmt.Fprintf(w, "```\n")
}
