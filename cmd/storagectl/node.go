package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

func newNode(a *app) *cobra.Command {
	noun := newNoun("node", "Show and remove the nodes", newNodeList(a), newNodeShow(a), newNodeRemove(a))
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
			formatSize(n.CapacityBytes()), sizeIf(n.SpaceKnown(), n.UsedBytes()), sizeIf(n.SpaceKnown(), n.FreeBytes()), a.seen(n)}
		if wide {
			row = append(row, orDash(n.Version), orDash(n.Addresses.Peer), orDash(n.Addresses.API), orDash(n.Addresses.NBD),
				orDash(n.Addresses.HTTP))
		}
		t.row(row...)
	}
	t.write(w, "no nodes")
}

// sizeIf is a size, or a dash where it is not known.
func sizeIf(known bool, bytes int64) string {
	if !known {
		return "-"
	}
	return formatSize(bytes)
}

// usedIf is a size and its part of the whole, or a dash where it is not known.
func usedIf(known bool, bytes, of int64) string {
	if !known {
		return "-"
	}
	return fmt.Sprintf("%s (%s)", formatSize(bytes), percent(bytes, of))
}

// seen is when the node was last heard of, as far as it is known.
func (a *app) seen(n api.Node) string {
	if n.State == api.NodeUnknown && n.SeenAt.IsZero() {
		return "-"
	}
	return a.ago(n.SeenAt)
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

func newNodeRemove(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:     "remove NAME|ID",
		Aliases: []string{"rm"},
		Short:   "Remove a node that will not come back",
		Long: `Removes a node from the cluster for ever, after its machine or its disk was lost. The node must be down. Its replicas
leave their groups, and other nodes that have none of the group take them over; "storagectl status" shows how far that
is. It is refused while the node is up, and when the node holds the only copy or the majority of any data: the message
says which node to start first.

A machine whose disk was replaced joins as a new node: "storaged serve --data-dir EMPTY --join HOST". It may take the
removed node's name. Start it before or after the removal; before, it needs another name.

On a terminal it asks first; elsewhere it needs --yes.`,
		Example:           "  storagectl node remove server-c\n  storagectl node remove 3 --yes",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completeNodes(),
		RunE: func(c *cobra.Command, args []string) error {
			return a.removeNode(c.Context(), args[0], yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// removeNode removes the node that it asks about, whoever takes its name meanwhile.
func (a *app) removeNode(ctx context.Context, name string, yes bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	n, err := client.Node(ctx, name)
	if err != nil {
		var e *storage.Error
		if errors.As(err, &e) {
			err = storage.E("remove", e.Kind, e.Subject, e.Err)
		}
		return err
	}
	if !yes {
		question := fmt.Sprintf("Remove node %s (id %s, %s, seen %s, %d replicas) for ever?", n.Name, n.ID, n.State, a.ago(n.SeenAt), n.Replicas)
		if err := a.confirm(ctx, "remove", "node "+n.Name, question); err != nil {
			return err
		}
	}
	if err := client.RemoveNode(ctx, n.ID); err != nil {
		return err
	}
	if !a.forProgram() {
		fmt.Fprintf(a.out, "node %s removed; its replicas are made anew on other nodes\n", n.Name)
	}
	return nil
}

func (a *app) writeNode(w io.Writer, n api.Node) {
	facts(w, "Name", n.Name, "ID", n.ID.String(), "Zone", n.Zone, "State", string(n.State), "Seen", a.seen(n),
		"Version", n.Version, "Peers", n.Addresses.Peer, "API", n.Addresses.API, "NBD", n.Addresses.NBD, "HTTP", n.Addresses.HTTP,
		"Replicas", fmt.Sprintf("%d, of which %d lead", n.Replicas, n.Leaders),
		"Capacity", formatSize(n.CapacityBytes()),
		"Used", usedIf(n.SpaceKnown(), n.UsedBytes(), n.CapacityBytes()),
		"Free", sizeIf(n.SpaceKnown(), n.FreeBytes()))
	fmt.Fprintln(w)
	t := newTable("STORE", "STATE", "CAPACITY", "USED", "FREE")
	for _, s := range n.Stores {
		known := s.State != api.StoreUnknown
		t.row(s.ID.String(), string(s.State), formatSize(s.CapacityBytes), sizeIf(known, s.UsedBytes), sizeIf(known, s.FreeBytes))
	}
	t.write(w, "The node has no stores.")
}
