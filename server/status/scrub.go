package status

import (
	"fmt"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// lostNamed bounds the lost blocks that a reason names.
const lostNamed = 3

// judgeScrub judges whether the disk gives back what was written to it. What was mended is a warning and no part of health: nothing is
// missing.
func (p *picture) judgeScrub(node string, s api.Store) (reasons, warnings []api.Reason) {
	if s.State == api.StoreFailed {
		return nil, nil
	}
	say := func(severity api.Health, text, step string) api.Reason {
		return api.Reason{Subject: "store " + s.ID.String(), Severity: severity, Text: text, NextStep: step}
	}
	r := s.Scrub
	if r.LostBlocks > 0 {
		reasons = append(reasons, say(api.HealthCritical, fmt.Sprintf("%s of the disk of node %s cannot be read by any replica, and reads fail: %s", blocks(r.LostBlocks), node, p.lost(r)),
			"restore what lies there from a backup, or write it anew; if a node with a replica is down, start it: it may have the blocks"))
	}
	if r.WaitingBlocks > 0 {
		reasons = append(reasons, say(api.HealthDegraded, fmt.Sprintf("the disk of node %s does not give back %s, not written anew from another replica yet", node, blocks(r.WaitingBlocks)),
			"nothing, if all nodes are up and the disk has room: it is tried again by itself"))
	}
	if r.DamagedPages > 0 {
		reasons = append(reasons, say(api.HealthDegraded, fmt.Sprintf("tables on the disk of node %s are damaged (%d pages)", node, r.DamagedPages),
			"once all its groups have other voters, stop the node, `storagectl node remove` it, and let it join again with an empty data directory"))
	}
	if r.MendedBlocks > 0 {
		warnings = append(warnings, say(api.HealthOK, fmt.Sprintf("the disk of node %s did not give back %s since the node has started; all were written anew from other replicas", node, blocks(r.MendedBlocks)),
			"replace the disk if it goes on"))
	}
	return reasons, warnings
}

func blocks(n int64) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

// lost names the first lost blocks.
func (p *picture) lost(r storage.StoreScrub) string {
	var places []string
	for _, b := range r.Lost[:min(len(r.Lost), lostNamed)] {
		places = append(places, fmt.Sprintf("volume %s at byte %d", p.volumeName(b.Volume), b.OffsetBytes()))
	}
	if more := r.LostBlocks - int64(len(places)); more > 0 {
		places = append(places, fmt.Sprintf("%d more", more))
	}
	return strings.Join(places, ", ")
}

// volumeName is a volume's name, or its id if it is not in the catalog.
func (p *picture) volumeName(id storage.VolumeID) string {
	for _, v := range p.volumes {
		if v.ID == id {
			return v.Name
		}
	}
	return id.String()
}
