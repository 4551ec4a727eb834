package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

func newVersion(a *app) *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{
		Use:   "version",
		Short: "What storagectl and the node that answers were built from",
		Long: `Shows the version of this program and that of the node that answers. When no node answers, the exit code says so, after
the version of this program was shown; --client does not ask.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			v := versionView{Client: api.BuildVersion()}
			var failure error
			if !clientOnly {
				if node, err := a.nodeVersion(c); err == nil {
					v.Node = &node
				} else {
					failure = err
				}
			}
			err := a.show(v, func(w io.Writer, _ bool) {
				fmt.Fprintf(w, "storagectl %s\n", describeProgram(v.Client))
				if v.Node != nil {
					fmt.Fprintf(w, "storaged   %s\n", describeProgram(*v.Node))
				}
			})
			if err == nil {
				err = failure
			}
			return err
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "do not ask a node")
	return c
}

func (a *app) nodeVersion(c *cobra.Command) (api.Version, error) {
	client, err := a.client()
	if err != nil {
		return api.Version{}, err
	}
	v, err := client.Version(c.Context())
	if err != nil && storage.KindOf(err) == storage.KindInternal {
		err = storage.E("show", storage.KindInternal, "version", err)
	}
	return v, err
}

func describeProgram(p api.Version) string {
	text := orDash(p.Version)
	if p.Commit != "" {
		text += " (" + p.Commit[:min(12, len(p.Commit))] + ")"
	}
	return fmt.Sprintf("%s, %s, %s", text, p.GoVersion, p.Platform)
}
