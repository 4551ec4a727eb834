package status

import (
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// A cluster that was never whole is starting; one that was whole, and is not, has lost something. The catalog tells them apart, not a
// clock: it records that a group is ready when its first replica has led it, and that record never changes. See docs/adr/0024.

// making says which part of a new cluster is still being made; empty: each of its groups has been ready once.
func making(c catalog.Cluster, groups []storage.Group) string {
	ready := 0
	for _, g := range groups {
		if g.State == storage.GroupReady {
			ready++
		}
	}
	switch want := max(c.Groups, len(groups)); {
	case c.ID.IsZero():
		return "its catalog is being made"
	case ready < want:
		return fmt.Sprintf("it is being made: %d of %d groups have had their first leader", ready, want)
	}
	return ""
}

// unborn says why this node has no catalog yet although nothing is lost; empty: it has one, or has lost it.
func (v *View) unborn(fresh catalog.Freshness) string {
	switch {
	case fresh.Leader != 0:
		return ""
	case v.Catalog.NeverLed():
		return "this node has made the cluster, and has not led it yet: it is about to"
	case v.Catalog.Untold() && v.hearsOthers():
		return "this node has joined the cluster, and was not sent the catalog yet"
	}
	return ""
}

// hearsOthers reports whether there is a living connection to another node.
func (v *View) hearsOthers() bool {
	return slices.ContainsFunc(v.Catalog.Known(), func(id storage.NodeID) bool { return id != v.Self && v.Peers.Connected(id) })
}

// Starting reports whether the cluster was never whole, as far as this node knows.
func (v *View) Starting() bool {
	if !v.Running() {
		return v.waits.Load() != nil
	}
	var text string
	fresh := v.Catalog.View(func(s *catalog.State) { text = making(s.Cluster(), s.Groups()) })
	return v.unborn(fresh) != "" || fresh.Leader != 0 && fresh.Age != catalog.NeverHeard && text != ""
}
