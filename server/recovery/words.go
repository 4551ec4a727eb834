package recovery

import (
	"fmt"
	"io"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

// Describe says what there is, what would become of it, and what may be lost.
func (r *Recovery) Describe(w io.Writer) {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	c := r.copy
	say("node %s (id %s) of cluster %v", r.name(c.Identity.Node), c.Identity.Node, c.Identity.Cluster)
	say("lost for good: %s", r.names(r.lost))
	if before := r.TokenBefore(); before != "" {
		say("this node has been through a recovery already, which others follow with --follow %s. What follows here would be another one", before)
	}
	if r.unread != nil {
		say("catalog: what this node has cannot be read: %v", r.unread)
	} else {
		say("catalog: this node has it up to index %d, term %d; voters: %s", c.Index, c.Term, r.names(c.Voters))
	}
	switch {
	case r.cfg.Follow != "":
		say("  it is set aside; the node gets that of recovery %08x when it is started", r.number)
	case r.cfg.From != nil:
		say("  it begins anew with the backup, which is of index %d", r.from.Applied())
	default:
		say("  it begins anew with that, and this node as the only voter")
	}
	if r.from != nil && r.cfg.Follow == "" {
		say("  %d nodes, %d groups, %d volumes", len(r.others())+1, len(r.from.Groups()), len(r.from.VolumesByName()))
	}
	goOn := 0
	for _, g := range r.groups {
		if g.Fate == GoesOn {
			goOn++
			continue
		}
		r.describeGroup(say, g)
	}
	if goOn > 0 {
		say("%d groups with a replica here go on as they are: a majority of their voters is left", goOn)
	}
	if groups, volumes := r.gone(); len(groups) > 0 {
		say("No voter is left of groups %v: what they held is lost, and these volumes have a part there: %v", groups, volumes)
	}
	if r.cfg.Follow != "" {
		return
	}
	say("What may be lost: what was committed to the catalog after index %d, and what groups that go on alone acknowledged after the entries", r.from.Applied())
	say("above. Nobody can say what that was. Check the file systems and databases on the volumes of those groups.")
	say("Every host has to attach its volumes anew. Lost nodes are removed for ever, whatever becomes of them: never start them again with what they have.")
}

func (r *Recovery) describeGroup(say func(string, ...any), g Group) {
	at := ""
	if !g.LastAt.IsZero() {
		at = " of " + g.LastAt.Format(time.RFC3339)
	}
	switch g.Fate {
	case Without:
		say("group %s: this node's replica %s: %s", g.Survivor.Group, g.Fate, g.Why)
	case Alone:
		say("group %s: this node's replica %s, with everything up to entry %d%s, and loses what only the others had", g.Survivor.Group, g.Fate, g.Index, at)
	case Undecided:
		say("group %s: %d of %d voters are left, no majority: it %s. This one has everything up to entry %d, term %d%s; see what the others have "+
			"(%s), and give --promote %s where term and entry are highest", g.Survivor.Group, len(g.Left), len(g.Voters), g.Fate, g.Index, g.Term, at,
			r.names(slices.DeleteFunc(slices.Clone(g.Left), func(id storage.NodeID) bool { return id == r.copy.Identity.Node })), g.Survivor.Group)
	}
}

// Next says what comes after Do, which has returned kept.
func (r *Recovery) Next(w io.Writer, kept string) {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	say("done; this node follows recovery %08x", r.number)
	if kept != "" {
		say("what it had of the catalog is kept in %s", kept)
	}
	if r.cfg.Follow != "" {
		say("start it as usual, once the first node of the recovery runs")
		return
	}
	left := slices.DeleteFunc(r.others(), func(id storage.NodeID) bool { return slices.Contains(r.lost, id) })
	if len(left) > 0 {
		say("now, on each other node that is left (%s), while it is stopped:", r.names(left))
		say("  storaged recover --data-dir ITS-DIRECTORY --follow %s --yes", r.Token())
	}
	say("then start this node as usual, and the others; let new nodes join with empty directories and --join")
	say("there is no way back from here, and nothing but this node has the catalog until another one runs: keep its disk safe")
}
