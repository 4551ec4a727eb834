package control

import (
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// servedMemory is how long a volume that nobody has open counts where it was open last: whoever comes back, comes back
// there, and a leader that moves for nobody costs its other clients a pause.
const servedMemory = 5 * time.Minute

// served remembers by which nodes' gateways volumes are served, for those who place leaders near them. It is not safe for
// concurrent use.
type served map[storage.VolumeID]map[storage.NodeID]*servedSpan

// servedSpan is a time in which a gateway served a volume, with gaps of up to servedMemory.
type servedSpan struct{ since, last time.Time }

// uses looks at the sessions there are now and counts every volume where it has been served for minAge or longer: at the
// gateways that have it open, or when none has, at those that had it open last.
func (m served) uses(s *catalog.State, now time.Time, minAge time.Duration) placement.Uses {
	m.note(s, now)
	uses := placement.Uses{}
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
		if !ok || v.State != catalog.VolumeReady || len(nodes) == 0 {
			delete(m, id)
			continue
		}
		for n, span := range nodes {
			if span.last.Equal(newest) && now.Sub(span.since) >= minAge {
				uses.Add(v, n)
			}
		}
	}
	return uses
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
