package replication

import (
	"errors"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// damagedReplica is a replica that may have lost what it once acknowledged. It is never started: it neither votes nor
// acknowledges (I7), until it is dropped and a new member, of the next incarnation, takes its place.
type damagedReplica struct {
	disk   *disk
	key    segment.GroupKey
	reason string // never empty
}

func (d damagedReplica) self() raft.ServerID { return ServerID(d.disk.store.ID(), d.key.Incarnation) }

func (d damagedReplica) describe() GroupStatus {
	s := GroupStatus{Group: d.key.Group, Self: d.self(), Role: "damaged", Reason: d.reason}
	if d.disk.failed.Load() {
		s.Role, s.Reason = "stopped", "its disk has failed" // nothing can be made on that disk
	}
	return s
}

// keepOut notes that a replica is damaged.
func (h *Host) keepOut(d *disk, key segment.GroupKey, reason string) {
	h.cfg.Logger.Error("replica is damaged and stays out: it comes back as a new member", "group", key.Group,
		"store", d.store.ID(), "incarnation", key.Incarnation, "reason", reason)
	h.mu.Lock()
	h.out[key.Group] = damagedReplica{disk: d, key: key, reason: reason}
	h.mu.Unlock()
}

// removeDamaged forgets a damaged replica and frees its space. The caller holds changing.
func (h *Host) removeDamaged(d damagedReplica) error {
	if err := d.disk.store.RemoveGroup(d.key); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	h.mu.Lock()
	delete(h.out, d.key.Group)
	h.mu.Unlock()
	return nil
}
