package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
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
		Long: `Lists the nodes. FREE is how much still may be written, FILL which part is taken of what may be; at 100 % new data is
refused. USED holds garbage, which compaction wins back, and other files of the file system. On a terminal a bar shows
live blocks (#), garbage (%), tables (t), other files (o) and the reserve (r).`,
		Args: takes(),
		RunE: asks(a, func(ctx context.Context, c *client.Client, _ []string) ([]api.Node, error) { return c.Nodes(ctx) }, list(viewNode), a.writeNodes),
	}
}

func (a *app) writeNodes(w io.Writer, list []api.Node, wide bool) {
	t := newTable("ID", "NAME", "ZONE", "STATE", "REPLICAS", "LEADERS", "CAPACITY", "USED", "GARBAGE", "FREE", "FILL", "SEEN").more(wide, "VERSION", "PEER", "API", "NBD", "HTTP")
	for _, n := range list {
		t.row(n.ID.String(), n.Name, orDash(n.Zone), string(n.State), dashUnless(n.Heard(), fmt.Sprint(n.Replicas)), dashUnless(n.Heard(), fmt.Sprint(n.Leaders)),
			formatSize(n.CapacityBytes()), dashUnless(n.SpaceKnown(), a.bar(n.Stores, listBar)+formatSize(n.UsedBytes())),
			dashUnless(n.Known(), formatSize(n.GarbageBytes())), dashUnless(n.SpaceKnown(), formatSize(n.FreeBytes())), dashUnless(n.Known(), fullest(n)), a.seen(n),
			orDash(n.Version), orDash(n.Addrs.Peer), orDash(n.Addrs.API), orDash(n.Addrs.NBD), orDash(n.Addrs.HTTP))
	}
	t.write(w, "no nodes")
}

// seen is when the node was last heard of, as far as it is known.
func (a *app) seen(n api.Node) string {
	if n.State == storage.NodeUnknown && n.SeenAt.IsZero() {
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
		Use:   "show NAME|ID",
		Short: "Show a node and its stores",
		Long: `Shows a node, and the room in each of its stores: how much still may be written (FREE), and which part is taken of what
may be (FILL); at 100 % new data is refused. Then what takes the room: live blocks, garbage, which compaction wins back,
tables, other files of the file system, and what is left of the reserve. On a terminal a bar shows the parts.

Then how the scrub finds the disk: when all of it was read last, and what was damaged. Mended blocks were written anew
from another replica since the node has started; waiting ones are tried again; lost ones no replica can read.

A number may be the name of one node and the id of another; "name:2" and "id:2" say which is meant.`,
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Node, error) {
			return c.Node(ctx, args[0])
		},
			viewNode, a.writeNode),
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

A number may be the name of one node and the id of another; "name:2" and "id:2" say which is meant.

On a terminal it asks first; elsewhere it needs --yes.`,
		Example:           "  storagectl node remove server-c\n  storagectl node remove 3 --yes",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.removeNode(c.Context(), args[0], yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// removeNode removes the node that it asks about, whoever takes its name meanwhile.
func (a *app) removeNode(ctx context.Context, name string, yes bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := c.Node(ctx, name)
	if err != nil {
		return under("remove", err)
	}
	return a.remove(ctx, removal{op: "remove", subject: "node " + n.Name, yes: yes,
		question: fmt.Sprintf("Remove node %s (id %s, %s, seen %s, %d replicas) for ever?", n.Name, n.ID, n.State, a.ago(n.SeenAt), n.Replicas),
		do:       func() error { return c.RemoveNode(ctx, n.ID) },
		done:     fmt.Sprintf("node %s (id %s) removed; its replicas are made anew on other nodes", n.Name, n.ID)})
}

func (a *app) writeNode(w io.Writer, n api.Node, _ bool) {
	facts(w, "Name", n.Name, "ID", n.ID.String(), "Zone", n.Zone, "State", string(n.State), "Seen", a.seen(n),
		"Version", orDash(n.Version), "Peers", n.Addrs.Peer, "API", n.Addrs.API, "NBD", n.Addrs.NBD, "HTTP", n.Addrs.HTTP,
		"Replicas", dashUnless(n.Heard(), fmt.Sprintf("%d, of which %d lead", n.Replicas, n.Leaders)),
		"Capacity", formatSize(n.CapacityBytes()),
		"Used", dashUnless(n.SpaceKnown(), fmt.Sprintf("%s (%s)", formatSize(n.UsedBytes()), percent(n.UsedBytes(), n.CapacityBytes()))),
		"Free", dashUnless(n.SpaceKnown(), formatSize(n.FreeBytes())))
	fmt.Fprintln(w)
	t := newTable("STORE", "STATE", "CAPACITY", "USED", "FREE", "FILL", "COMPACTION")
	for _, s := range n.Stores {
		known := s.State != api.StoreUnknown
		t.row(s.ID.String(), string(s.State), formatSize(s.CapacityBytes), dashUnless(known, formatSize(s.UsedBytes)), dashUnless(known, formatSize(s.FreeBytes)),
			dashUnless(s.Known(), fillText(s.Fill)), orDash(string(s.Compaction)))
	}
	t.write(w, "The node has no stores.")
	a.writeSpace(w, n.Stores)
	a.writeScrub(w, n.Stores)
}
