package replication

import (
	"errors"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// damagedReplica is a replica that may have lost what it once acknowledged, or cannot apply what its group has committed.
// It is not started, or was stopped: it neither votes nor acknowledges (I7), until it is dropped and a new member, of the
// next incarnation, takes its place.
type damagedReplica struct {
	disk   *disk
	key    segment.GroupKey
	reason string // never empty
	// newer: nothing is damaged, but the log holds an entry of a later version of storaged. The replica goes on with a
	// program that knows it, and is not made anew.
	newer bool
	ran   *group // it ran until it was set aside, and may still be stopping; nil: it did not
}

func (d damagedReplica) self() raft.ServerID { return ServerID(d.disk.store.ID(), d.key.Incarnation) }

func (d damagedReplica) describe() GroupStatus {
	s := GroupStatus{Group: d.key.Group, Self: d.self(), Role: "damaged", Reason: d.reason}
	if d.newer {
		s.Role = "stopped"
	}
	if d.disk.store.Failed() != nil {
		s.Role, s.Reason = "stopped", "its disk has failed" // nothing can be made on that disk
	}
	return s
}

// keepOut notes that a replica is damaged.
func (rs *Replicas) keepOut(d *disk, key segment.GroupKey, reason string) {
	rs.cfg.Logger.Error("replica is damaged and stays out: it comes back as a new member", "group", key.Group,
		"store", d.store.ID(), "incarnation", key.Incarnation, "reason", reason)
	rs.mu.Lock()
	rs.out[key.Group] = damagedReplica{disk: d, key: key, reason: reason}
	rs.mu.Unlock()
}

// setAside stops a replica that runs, and keeps it out: it holds an entry that it cannot apply. It returns at once, and
// does nothing the second time.
func (g *group) setAside(err error) {
	rs := g.node
	d := damagedReplica{disk: g.disk, key: g.extents.Key(), reason: err.Error(), ran: g, newer: storage.KindOf(err) == storage.KindUnsupported}
	if d.newer {
		d.reason = "its log holds an entry of a later version of storaged; upgrade this node: " + d.reason
	}
	rs.mu.Lock()
	ours := rs.groups[g.id] == g
	if ours {
		delete(rs.groups, g.id)
		rs.out[g.id] = d
	}
	rs.mu.Unlock()
	if !ours {
		return
	}
	rs.cfg.Logger.Error("replica cannot apply an entry and stops", "group", g.id, "store", g.disk.store.ID(),
		"incarnation", d.key.Incarnation, "comes_back_as_new_member", !d.newer, "reason", d.reason)
	rs.goRun(g.stop)
}

// removeDamaged forgets a damaged replica and frees its space. The caller holds changing.
func (rs *Replicas) removeDamaged(d damagedReplica) error {
	if d.ran != nil {
		d.ran.stop()
	}
	if err := d.disk.store.RemoveGroup(d.key); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	rs.mu.Lock()
	delete(rs.out, d.key.Group)
	rs.mu.Unlock()
	return nil
}
