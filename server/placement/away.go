package placement

import (
	"fmt"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

// Away returns the nodes that count as lost until they are back: they have been down for longer than `after`, and others make
// their replicas anew. downFor says how long a node has been silent. With after 0 there are none.
//
// A node in maintenance is down on purpose, is not lost before its time is over, and says nothing about the others.
//
// What looks like the failure of more than single nodes is left to people: a whole zone of several nodes, or half of all nodes,
// are more likely without power or network than lost. To replace them would move much of the data onto what is left, and
// zones would share replicas that are never taken apart again. held says which are held for that reason; empty: none.
func Away(nodes []storage.Node, downFor func(storage.Node) time.Duration, after time.Duration) (away map[storage.NodeID]bool, held string) {
	if after <= 0 {
		return nil, ""
	}
	usable, down := 0, 0
	type zone struct{ nodes, down int }
	zones := map[string]*zone{}
	for _, n := range nodes {
		if !n.Usable() || n.State == storage.NodeDown && n.Intent == storage.IntentMaintenance {
			continue
		}
		z := zones[n.Zone]
		if z == nil {
			z = &zone{}
			zones[n.Zone] = z
		}
		usable++
		z.nodes++
		if n.State == storage.NodeDown {
			down++
			z.down++
		}
	}
	late := func(n storage.Node) bool {
		return n.State == storage.NodeDown && n.Intent != storage.IntentMaintenance && downFor(n) > after
	}
	if !slices.ContainsFunc(nodes, late) {
		return nil, ""
	}
	if 2*down >= usable {
		return nil, fmt.Sprintf("%d of %d nodes are down", down, usable)
	}
	for _, n := range nodes {
		if !late(n) {
			continue
		}
		if z := zones[n.Zone]; len(zones) > 1 && z.nodes > 1 && z.down == z.nodes {
			held = fmt.Sprintf("all %d nodes of zone %q are down", z.nodes, n.Zone)
			continue
		}
		if away == nil {
			away = map[storage.NodeID]bool{}
		}
		away[n.ID] = true
	}
	return away, held
}

// MostEndangeredFirst returns the groups, those with the fewest voters on nodes that work first: what is nearest to being lost is made whole
// first.
func MostEndangeredFirst(v View) []storage.Group {
	works := map[storage.NodeID]bool{}
	for _, n := range v.Nodes {
		works[n.ID] = v.works(n.ID)
	}
	voters := func(g storage.Group) (n int) {
		for _, r := range g.Replicas {
			if r.Role == storage.RoleVoter && works[r.Node] {
				n++
			}
		}
		return n
	}
	groups := slices.Clone(v.Groups)
	slices.SortStableFunc(groups, func(a, b storage.Group) int { return voters(a) - voters(b) })
	return groups
}
