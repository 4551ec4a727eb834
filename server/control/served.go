package control

import (
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// servedMemory is how long a volume that nobody has open still counts at the node where it was open last. Its user will
// probably come back there, and moving a leader for nobody costs the group's other clients a pause.
const servedMemory = 5 * time.Minute

// served remembers by which nodes' gateways volumes are served, for those who place leaders near them. It is not safe for
// concurrent use.
type served map[storage.VolumeID]map[storage.NodeID]*servedSpan

// servedSpan is a time in which a gateway served a volume, with gaps of up to servedMemory.
type servedSpan struct{ since, last time.Time }

// uses counts every volume, in each of its groups, at the gateways that have it open now. If none has, it counts at those
// that had it open last. A leader that moves is a pause for everyone who uses the group. So where others use the group too, a
// volume counts only after it has been served there for minAge.
func (m served) uses(s *catalog.State, now time.Time, minAge time.Duration) placement.Uses {
	m.note(s, now)
	uses, only := placement.Uses{}, m.only(s)
	for id, nodes := range m {
		v, ok := s.Volume(id)
		var newest time.Time
		for n, span := range nodes {
			if now.Sub(span.last) > servedMemory {
				delete(nodes, n)
			} else if span.last.After(newest) {
				newest = span.last
			}
		}
		if !ok || v.State != storage.VolumeReady || len(nodes) == 0 {
			delete(m, id)
			continue
		}
		for n, span := range nodes {
			if !span.last.Equal(newest) {
				continue
			}
			for _, g := range v.Groups {
				if now.Sub(span.since) >= minAge || only[g] == n {
					uses.Add(g, n)
				}
			}
		}
	}
	return uses
}

// only returns the groups that are used now, by the node whose gateway is the only one that does; 0 if there are several.
// A host's own gateway is one of several.
func (m served) only(s *catalog.State) map[storage.GroupID]storage.NodeID {
	only := map[storage.GroupID]storage.NodeID{}
	for _, x := range s.Sessions() {
		v, ok := s.Volume(x.Volume)
		if !ok || x.State != catalog.SessionLive {
			continue
		}
		for _, g := range v.Groups {
			if n, seen := only[g]; seen && n != x.Gateway.Node {
				only[g] = 0
			} else {
				only[g] = x.Gateway.Node
			}
		}
	}
	return only
}

// note takes in the sessions that are live now.
func (m served) note(s *catalog.State, now time.Time) {
	for _, x := range s.Sessions() {
		n := x.Gateway.Node
		if n == 0 || x.State != catalog.SessionLive {
			continue
		}
		if m[x.Volume] == nil {
			m[x.Volume] = map[storage.NodeID]*servedSpan{}
		}
		if m[x.Volume][n] == nil {
			m[x.Volume][n] = &servedSpan{since: now}
		}
		m[x.Volume][n].last = now
	}
}
