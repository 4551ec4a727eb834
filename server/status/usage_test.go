package status

import (
	"context"
	"errors"
	"slices"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/placement"
)

// fakeCounter knows the blocks of volumes by group.
type fakeCounter map[storage.GroupID]map[storage.VolumeID]int64

func (f fakeCounter) MappedBlocks(g storage.GroupID, ids []storage.VolumeID) ([]int64, error) {
	if f[g] == nil {
		return nil, storage.E("find", storage.KindNotLeader, "group "+g.String(), nil)
	}
	out := make([]int64, len(ids))
	for i, id := range ids {
		out[i] = f[g][id]
	}
	return out, nil
}

func TestCountBlocks(t *testing.T) {
	replicas := fakeCounter{1: {1: 5, 2: -1}, 2: {1: 7, 2: 3}}
	a, err := countBlocks(replicas, usageRequest{Groups: []storage.GroupID{1, 2, 3}, Volumes: []storage.VolumeID{1, 2, 9}})
	if err != nil || !slices.Equal(a.Blocks, []int64{12, -1, 0}) || !slices.Equal(a.Missing, []storage.GroupID{3}) {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := countBlocks(replicas, usageRequest{Volumes: make([]storage.VolumeID, maxUsageVolumes+1)}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("too many volumes: %v", err)
	}
}

// TestUncountedGroups: what a volume holds is said only when each of its groups was counted. A group is not counted when it has no
// known leader, or when its leader does not answer, has no replica of it any more, or does not know yet. What other volumes hold is
// said.
func TestUncountedGroups(t *testing.T) {
	p := &picture{reports: map[storage.NodeID]placement.Heard{}}
	leads := func(node storage.NodeID, groups ...storage.GroupID) {
		r := placement.NodeReport{Node: node}
		for _, g := range groups {
			key := storage.ReplicaKey{Store: storage.StoreID{byte(node)}, Incarnation: storage.Incarnation(g)}
			p.groups = append(p.groups, storage.Group{ID: g, Replicas: []storage.Replica{{Node: node, Key: key, Role: storage.RoleVoter}}})
			if g != 9 {
				r.Replicas = append(r.Replicas, placement.ReplicaReport{Group: g, Key: key, State: placement.ReplicaLeader, Term: 1})
			}
		}
		p.reports[node] = placement.Heard{Report: r}
	}
	leads(1, 1, 2, 9) // 9 without a leader
	leads(2, 3, 4)    // 4 left it a moment ago
	leads(3, 5)       // silent
	hosts := map[storage.NodeID]fakeCounter{1: {1: {1: 5, 2: 1, 6: -1, 8: -1}, 2: {1: 7, 2: 1}}, 2: {3: {1: 100, 8: 100}}}
	ask := func(_ context.Context, node storage.NodeID, q usageRequest) (usageAnswer, error) {
		if hosts[node] == nil {
			return usageAnswer{}, storage.E("ask", storage.KindUnavailable, "node "+node.String(), nil)
		}
		return countBlocks(hosts[node], q)
	}
	var volumes []api.Volume
	want := map[storage.VolumeID]int64{}
	add := func(id storage.VolumeID, blocks int64, groups ...storage.GroupID) {
		volumes = append(volumes, api.Volume{Volume: storage.Volume{ID: id, Groups: groups}, AllocatedBytes: -1, OnDiskBytes: -1})
		if want[id] = blocks * storage.BlockSize; blocks < 0 {
			want[id] = -1
		}
	}
	add(1, 112, 1, 2, 3)
	add(2, -1, 1, 2, 4)
	add(3, -1, 1, 5)
	add(4, -1, 1, 9)
	add(5, -1, 77) // a group that this copy of the catalog does not have yet
	add(6, -1, 1)
	add(7, 0, 2)
	add(8, -1, 1, 3)
	p.groups[1].Replicas = append(p.groups[1].Replicas, // of group 2: two more replicas hold all of it, and one a part
		storage.Replica{Node: 7, Role: storage.RoleLearner}, storage.Replica{Node: 8, Role: storage.RoleLeaving}, storage.Replica{Node: 9, Role: storage.RolePulling})
	p.fillUsage(t.Context(), ask, volumes)
	if v := volumes[0]; v.OnDiskBytes != (5+3*7+100)*storage.BlockSize {
		t.Errorf("of all copies it is %d blocks, want %d", v.OnDiskBytes/storage.BlockSize, 5+3*7+100)
	}
	if v := volumes[1]; v.OnDiskBytes != -1 {
		t.Errorf("of a volume that was not counted it is %d bytes", v.OnDiskBytes)
	}
	for _, v := range volumes {
		if v.AllocatedBytes != want[v.ID] {
			t.Errorf("volume %d over groups %d: %d bytes, want %d", v.ID, v.Groups, v.AllocatedBytes, want[v.ID])
		}
	}
}
