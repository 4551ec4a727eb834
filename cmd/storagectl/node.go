package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

func newNode(a *app) *cobra.Command {
	noun := newNoun("node", "Show the nodes, drain them, remove them", newNodeList(a), newNodeShow(a), newNodeDrain(a), newNodeUndrain(a),
		newNodeMaintenance(a), newNodeRemove(a))
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
		t.row(n.ID.String(), n.Name, orDash(n.Zone), stateText(n), dashUnless(n.Heard(), fmt.Sprint(n.Replicas)), dashUnless(n.Heard(), fmt.Sprint(n.Leaders)),
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
	var yes, dryRun bool
	c := &cobra.Command{
		Use:     "remove NAME|ID",
		Aliases: []string{"rm"},
		Short:   "Remove a node that has drained, or will not come back",
		Long: `Removes a node from the cluster for ever. A node that has drained (storagectl node drain) goes at once. So does one
whose machine or disk was lost: it must be down, its replicas leave their groups, and other nodes that have none of the
group take them over; "storagectl status" shows how far that is. It is refused while the node is up and holds anything,
and when the node holds the only copy or the majority of any data: the message says which node to start first. With
--dry-run nothing is done: it says what would move where, and which groups would stop.

A machine whose disk was replaced joins as a new node: "storaged serve --data-dir EMPTY --join HOST". It may take the
removed node's name. Start it before or after the removal; before, it needs another name.

A number may be the name of one node and the id of another; "name:2" and "id:2" say which is meant.

On a terminal it asks first; elsewhere it needs --yes.`,
		Example:           "  storagectl node remove server-c\n  storagectl node remove 3 --yes\n  storagectl node remove server-c --dry-run",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: func(c *cobra.Command, args []string) error {
			if dryRun {
				return a.planNode(c.Context(), args[0], api.ActRemove)
			}
			return a.removeNode(c.Context(), args[0], yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen, and do nothing")
	return c
}

func newNodeDrain(a *app) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "drain NAME|ID",
		Short: "Move everything from a node to other nodes",
		Long: `Drains a node: it gets nothing new, its replicas are made on other nodes, and only then leave it. No group has fewer
copies on the way. It may be stopped before it is done, too: what it holds is then made anew from the other copies. It
is refused when the other nodes could not hold as many copies as there are now. "storagectl status" shows how far it is.

Afterwards the node can be removed (storagectl node remove), or takes its part again (storagectl node undrain).

Plain NBD clients stay connected to the node, and volumes go on being served through it until it is stopped. With
--dry-run nothing is done: it says what would move where, and why something could not.`,
		Example:           "  storagectl node drain server-c --dry-run\n  storagectl node drain server-c",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: func(c *cobra.Command, args []string) error {
			if dryRun {
				return a.planNode(c.Context(), args[0], api.ActDrain)
			}
			return a.wantOfNode(c.Context(), "drain", args[0], api.IntentChange{Intent: storage.IntentDrain},
				"drains; `storagectl status` shows how far it is")
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would move, and do nothing")
	return c
}

func newNodeUndrain(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "undrain NAME|ID",
		Short: "Let a node that drains take its part again",
		Long: `Ends the draining of a node: it may be given replicas and leaders again. What has moved stays where it is, and what
leaves already leaves.`,
		Example:           "  storagectl node undrain server-c",
		Args:              takes("NAME|ID"),
		ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.wantOfNode(c.Context(), "undrain", args[0], api.IntentChange{From: storage.IntentDrain}, "takes its part again")
		},
	}
}

// defaultMaintenance is long enough for a new kernel, and short enough that a node that does not come back is noticed.
const defaultMaintenance = 2 * time.Hour

func newNodeMaintenance(a *app) *cobra.Command {
	var dryRun, end bool
	var length time.Duration
	c := &cobra.Command{
		Use:     "maintenance NAME|ID",
		Aliases: []string{"maintain"},
		Short:   "Let a node be down for a while",
		Long: `Tells the cluster that a node will be down for a while: its leaders move to other nodes, it gets nothing new, and what it
holds is not made anew elsewhere while it is down. Wait until it leads nothing (storagectl node show), and stop it. After
--for it ends by itself: a node that is still down by then counts as lost (--repair-after of storaged). --end ends it at
once. Given again, it ends at the new time.

It changes nothing of how many failures the data bears: while the node is down, that is one fewer. With --dry-run
nothing is done: it says which groups would stop, because they have no majority without the node, and which volumes are
attached through it.`,
		Example: "  storagectl node maintenance server-c --dry-run\n  storagectl node maintenance server-c --for 30m\n  storagectl node maintenance server-c --end",
		Args:    takes("NAME|ID"), ValidArgsFunction: a.completes(1, a.nodeNames),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case dryRun:
				return a.planNode(c.Context(), args[0], api.ActMaintenance)
			case end:
				return a.wantOfNode(c.Context(), "end maintenance of", args[0], api.IntentChange{From: storage.IntentMaintenance}, "takes its part again")
			}
			until := a.now().Add(length)
			return a.wantOfNode(c.Context(), "maintain", args[0], api.IntentChange{Intent: storage.IntentMaintenance, Until: until},
				"is in maintenance until "+minute(until))
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would stop, and do nothing")
	c.Flags().BoolVar(&end, "end", false, "end it")
	c.Flags().DurationVar(&length, "for", defaultMaintenance, "how long, at most 720h")
	c.MarkFlagsMutuallyExclusive("dry-run", "end")
	c.MarkFlagsMutuallyExclusive("for", "end")
	return c
}

// wantOfNode says what is wanted of the node that has the name now.
func (a *app) wantOfNode(ctx context.Context, op, name string, change api.IntentChange, done string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := c.Node(ctx, name)
	if err == nil {
		err = c.SetNodeIntent(ctx, n.ID, change)
	}
	if err != nil {
		return under(op, err)
	}
	if !a.forProgram() {
		fmt.Fprintf(a.out, "node %s (id %s) %s\n", n.Name, n.ID, done)
	}
	return nil
}

// planNode shows what an action would do. What would be refused is shown like any other answer, and ends with an error.
func (a *app) planNode(ctx context.Context, name string, action api.NodeAction) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := c.Node(ctx, name)
	if err != nil {
		return under("plan", err)
	}
	p, err := c.PlanNode(ctx, n.ID, action)
	if err != nil {
		return err
	}
	if err := a.show(viewPlan(p), func(w io.Writer, _ bool) { writePlan(w, p) }); err != nil || p.Refused == "" {
		return err
	}
	return storage.E(string(action), storage.KindConflict, "node "+p.Name, errors.New(p.Refused))
}

// stateText is a node's state, and what is wanted of it.
func stateText(n api.Node) string {
	if n.Intent == storage.IntentServe {
		return string(n.State)
	}
	return string(n.State) + ", " + n.Intent.String()
}

// untilText is when a node's maintenance ends; empty: it is in none.
func untilText(n api.Node) string {
	if n.IntentUntil.IsZero() {
		return ""
	}
	return minute(n.IntentUntil)
}

func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func writePlan(w io.Writer, p api.NodePlan) {
	if len(p.Moves) > 0 {
		t := newTable("GROUP", "BYTES", "TO", "WHY NOT")
		for _, m := range p.Moves {
			bytes := "?"
			if m.Bytes > 0 {
				bytes = formatSize(m.Bytes)
			}
			t.row(m.Group.String(), bytes, orDash(m.ToName), m.Why)
		}
		t.write(w, "")
		fmt.Fprintln(w)
	}
	stuck := 0
	for _, m := range p.Moves {
		if m.To == 0 {
			stuck++
		}
	}
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	switch {
	case len(p.Moves) == 0 && p.Action != api.ActMaintenance:
		say("node %s holds nothing that would move", p.Name)
	case len(p.Moves) > 0:
		say("%d of %d replicas would move, %s", len(p.Moves)-stuck, len(p.Moves), formatSize(p.Bytes()))
	}
	if len(p.Stopped) > 0 {
		say("while it is down, groups %s stop: they have no majority without it", idList(p.Stopped))
	}
	if len(p.Thinner) > 0 {
		say("while it is down, groups %s have one working copy fewer", idList(p.Thinner))
	}
	if len(p.Volumes) > 0 {
		say("plain NBD clients use it for volumes %s: they have to connect to another node", strings.Join(p.Volumes, ", "))
	}
}

func idList(ids []storage.GroupID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return strings.Join(names, ", ")
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
	facts(w, "Name", n.Name, "ID", n.ID.String(), "Zone", n.Zone, "State", stateText(n), "Until", untilText(n), "Seen", a.seen(n),
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
