package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api"
)

func newNode(a *app) *cobra.Command {
	noun := newNoun("node", "Show the nodes", newNodeList(a), newNodeShow(a))
	noun.Aliases = []string{"nodes"}
	return noun
}

func newNodeList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the nodes",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Nodes(c.Context())
			if err != nil {
				return err
			}
			return a.show(views(list, viewNode), func(w io.Writer, wide bool) { a.writeNodes(w, list, wide) })
		},
	}
}

func (a *app) writeNodes(w io.Writer, list []api.Node, wide bool) {
	head := []string{"ID", "NAME", "ZONE", "STATE", "REPLICAS", "LEADERS", "CAPACITY", "USED", "FREE", "SEEN"}
	if wide {
		head = append(head, "VERSION", "PEER", "API", "NBD", "HTTP")
	}
	t := newTable(head...)
	for _, n := range list {
		row := []string{n.ID.String(), n.Name, orDash(n.Zone), string(n.State), fmt.Sprint(n.Replicas), fmt.Sprint(n.Leaders),
			formatSize(n.CapacityBytes()), formatSize(n.UsedBytes()), formatSize(n.FreeBytes()), a.ago(n.SeenAt)}
		if wide {
			row = append(row, orDash(n.Version), orDash(n.Addresses.Peer), orDash(n.Addresses.API), orDash(n.Addresses.NBD),
				orDash(n.Addresses.HTTP))
		}
		t.row(row...)
	}
	t.write(w, "no nodes")
}

// ago is when t was, for people.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := a.now().Sub(t); d < 2*time.Second {
		return "now"
	}
	return a.age(t) + " ago"
}

func newNodeShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME|ID",
		Short:             "Show a node and its stores",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completeNodes(),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			n, err := client.Node(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(viewNode(n), func(w io.Writer, _ bool) { a.writeNode(w, n) })
		},
	}
}

func (a *app) writeNode(w io.Writer, n api.Node) {
	facts(w, "Name", n.Name, "ID", n.ID.String(), "Zone", n.Zone, "State", string(n.State), "Seen", a.ago(n.SeenAt),
		"Version", n.Version, "Peers", n.Addresses.Peer, "API", n.Addresses.API, "NBD", n.Addresses.NBD, "HTTP", n.Addresses.HTTP,
		"Replicas", fmt.Sprintf("%d, of which %d lead", n.Replicas, n.Leaders),
		"Capacity", formatSize(n.CapacityBytes()),
		"Used", fmt.Sprintf("%s (%s)", formatSize(n.UsedBytes()), percent(n.UsedBytes(), n.CapacityBytes())),
		"Free", formatSize(n.FreeBytes()))
	fmt.Fprintln(w)
	t := newTable("STORE", "STATE", "CAPACITY", "USED", "FREE")
	for _, s := range n.Stores {
		t.row(s.ID.String(), string(s.State), formatSize(s.CapacityBytes), formatSize(s.UsedBytes), formatSize(s.FreeBytes))
	}
	t.write(w, "The node has no stores.")
}
