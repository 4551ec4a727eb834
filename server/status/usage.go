package status

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/peer/rpc"
	"github.com/storaged/storaged/server/catalog"
	"golang.org/x/sync/errgroup"
)

// What volumes hold is asked for when they are shown. Each group counts the mapped blocks of a volume as it applies entries, so an
// answer is cheap: a look into a map. Each node that leads groups of the volumes is asked once,
// or once for each number of replicas that its groups have, which is one number but for a time.

const (
	// usageTimeout bounds how long a list waits for what its volumes hold; after it, that is not known.
	usageTimeout = time.Second
	// usageParallel bounds how many nodes are asked at a time.
	usageParallel = 16
	// maxUsageBytes bounds a question and an answer before they are decoded.
	maxUsageBytes = 1 << 20
	// maxUsageVolumes bounds the volumes in one question: a page of a list, and the one more that says whether there is another.
	maxUsageVolumes = api.MaxPageSize + 1
)

// usageRequest asks a node how many blocks its replicas of the groups map of each volume.
type usageRequest struct {
	Groups  []storage.GroupID  `json:"groups"`
	Volumes []storage.VolumeID `json:"volumes"`
}

// usageAnswer holds the blocks of each volume, all groups together, in the order of the request; -1: not known.
type usageAnswer struct {
	Blocks []int64 `json:"blocks"`
	// Missing are the groups that the node has no replica of; they are not in the sums.
	Missing []storage.GroupID `json:"missing,omitempty"`
}

// BlockCounter is what a node's replicas know. *replication.Replicas implements it.
type BlockCounter interface {
	MappedBlocks(group storage.GroupID, volumes []storage.VolumeID) ([]int64, error)
}

func (q *usageRequest) check() error {
	if len(q.Groups) > catalog.MaxGroups || len(q.Volumes) > maxUsageVolumes {
		return storage.E("count blocks", storage.KindInvalid, "", fmt.Errorf("%d groups and %d volumes; at most %d and %d are allowed",
			len(q.Groups), len(q.Volumes), catalog.MaxGroups, maxUsageVolumes))
	}
	return nil
}

// countBlocks answers from the node's own replicas.
func countBlocks(replicas BlockCounter, q usageRequest) (usageAnswer, error) {
	if err := q.check(); err != nil {
		return usageAnswer{}, err
	}
	a := usageAnswer{Blocks: make([]int64, len(q.Volumes))}
	for _, g := range q.Groups {
		blocks, err := replicas.MappedBlocks(g, q.Volumes)
		if err != nil {
			a.Missing = append(a.Missing, g)
			continue
		}
		for i, n := range blocks {
			a.Blocks[i] = addKnown(a.Blocks[i], n)
		}
	}
	return a, nil
}

// addKnown adds two numbers; -1 stands for one that is not known.
func addKnown(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// methodUsage is how other nodes ask this one.
var methodUsage = rpc.Method[usageRequest, usageAnswer]{Name: "count blocks", Number: 56, Lane: peer.Control, From: peer.Members,
	MaxRequestBytes: maxUsageBytes, MaxAnswerBytes: maxUsageBytes}

// RegisterUsage enters the method by which other nodes ask this one.
func RegisterUsage(peers *peer.Transport, replicas BlockCounter) {
	methodUsage.Handle(peers, func(_ context.Context, _ rpc.Sender, q usageRequest) (usageAnswer, error) {
		return countBlocks(replicas, q)
	})
}

// askUsage asks a node, which may be this one.
func (v *View) askUsage(ctx context.Context, node storage.NodeID, q usageRequest) (usageAnswer, error) {
	if node == v.Self {
		return countBlocks(v.Blocks, q)
	}
	a, err := methodUsage.Call(ctx, v.Peers, node, q)
	if err != nil {
		return usageAnswer{}, err
	}
	if len(a.Blocks) != len(q.Volumes) {
		return usageAnswer{}, storage.E("count blocks", storage.KindInternal, "node "+node.String(),
			fmt.Errorf("%d answers to %d questions", len(a.Blocks), len(q.Volumes)))
	}
	return a, nil
}

// askUsage asks a node how many blocks its replicas map.
type askUsage func(ctx context.Context, node storage.NodeID, q usageRequest) (usageAnswer, error)

// leads is a node that leads groups, and how many replicas each of them has: what volumes take on all disks is counted apart for each
// number.
type leads struct {
	node   storage.NodeID
	copies int64
}

// copiesOf returns how many replicas of a group hold what it holds. One that is being pulled holds a part.
func copiesOf(g storage.Group) int64 { return int64(len(g.Replicas) - g.Count(storage.RolePulling)) }

// fillUsage sets what each volume holds, as the leaders of its groups count it now, and what that is in all copies. If one of them does
// not answer, it stays -1: not known.
func (p *picture) fillUsage(ctx context.Context, ask askUsage, volumes []api.Volume) {
	ids := make([]storage.VolumeID, len(volumes))
	used := map[storage.GroupID]bool{}
	for i, vol := range volumes {
		ids[i] = vol.ID
		for _, g := range vol.Groups {
			used[g] = true
		}
	}
	byLeader := map[leads][]storage.GroupID{}
	for _, g := range p.groups {
		if _, node := p.leader(g); used[g.ID] && node != 0 {
			l := leads{node, copiesOf(g)}
			byLeader[l] = append(byLeader[l], g.ID)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	var mu sync.Mutex // guards blocks, onDisk and counted
	blocks, onDisk, counted := make([]int64, len(volumes)), make([]int64, len(volumes)), map[storage.GroupID]bool{}
	var asking errgroup.Group
	asking.SetLimit(usageParallel)
	for l, groups := range byLeader {
		asking.Go(func() error {
			a, err := ask(ctx, l.node, usageRequest{Groups: groups, Volumes: ids})
			if err != nil {
				return err // nobody asks for it: its groups stay uncounted
			}
			mu.Lock()
			defer mu.Unlock()
			for i, n := range a.Blocks {
				blocks[i], onDisk[i] = addKnown(blocks[i], n), addKnown(onDisk[i], n*l.copies)
			}
			for _, g := range groups {
				counted[g] = !slices.Contains(a.Missing, g)
			}
			return nil
		})
	}
	_ = asking.Wait()
	for i := range volumes {
		all := !slices.ContainsFunc(volumes[i].Groups, func(g storage.GroupID) bool { return !counted[g] })
		if all && blocks[i] >= 0 {
			volumes[i].AllocatedBytes, volumes[i].OnDiskBytes = blocks[i]*storage.BlockSize, onDisk[i]*storage.BlockSize
		}
	}
}
