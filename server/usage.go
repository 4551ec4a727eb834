package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
)

// What volumes hold is asked for when they are shown: each group counts the mapped blocks of a volume as it applies entries,
// so that an answer costs a look into a map. One question goes to each node that leads groups of the volumes.

const (
	// usageTimeout bounds how long showing volumes waits for what they hold; without an answer that is not known.
	usageTimeout = time.Second
	// usageParallel bounds the nodes that are asked at a time.
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

// blockCounter is what a node's replicas know. *replication.Host implements it.
type blockCounter interface {
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
func countBlocks(host blockCounter, q usageRequest) (usageAnswer, error) {
	if err := q.check(); err != nil {
		return usageAnswer{}, err
	}
	a := usageAnswer{Blocks: make([]int64, len(q.Volumes))}
	for _, g := range q.Groups {
		blocks, err := host.MappedBlocks(g, q.Volumes)
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

// addKnown adds two numbers of which -1 is one that is not known.
func addKnown(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// registerUsage enters the method by which other nodes ask this one.
func registerUsage(peers *peer.Transport, host blockCounter) {
	peers.Handle(peer.MethodMappedBlocks, peer.Concurrent, func(in *peer.Inbound) {
		var q usageRequest
		answer, err := usageAnswer{}, decodeUsage(in.Payload, &q)
		if err == nil {
			answer, err = countBlocks(host, q)
		}
		var body []byte
		if err == nil {
			body, err = json.Marshal(answer)
		}
		if err != nil {
			in.ReplyError(err)
			return
		}
		in.Reply(nil, [][]byte{body})
	})
}

func decodeUsage(b []byte, v any) error {
	if len(b) > maxUsageBytes {
		return storage.E("count blocks", storage.KindInvalid, "", fmt.Errorf("%d bytes, at most %d are allowed", len(b), maxUsageBytes))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return storage.E("count blocks", storage.KindInvalid, "", err)
	}
	return nil
}

// askUsage asks a node, which may be this one.
func (v *view) askUsage(ctx context.Context, node storage.NodeID, q usageRequest) (usageAnswer, error) {
	if node == v.n.identity.Node {
		return countBlocks(v.n.host, q)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return usageAnswer{}, storage.E("count blocks", storage.KindInternal, "", err)
	}
	resp, err := v.n.peers.Call(ctx, node, peer.Control, &peer.Request{Method: peer.MethodMappedBlocks, Payload: [][]byte{body}})
	if err != nil {
		return usageAnswer{}, err
	}
	defer resp.Release()
	var a usageAnswer
	if err := decodeUsage(resp.Payload, &a); err != nil {
		return usageAnswer{}, err
	}
	if len(a.Blocks) != len(q.Volumes) {
		return usageAnswer{}, storage.E("count blocks", storage.KindInternal, "node "+node.String(),
			fmt.Errorf("%d answers to %d questions", len(a.Blocks), len(q.Volumes)))
	}
	return a, nil
}

// fillUsage sets what each volume holds, as the leaders of its groups count it now. Where one does not answer it stays
// unknown: -1.
func (v *view) fillUsage(ctx context.Context, p *picture, volumes []api.Volume) {
	ids := make([]storage.VolumeID, len(volumes))
	used := map[storage.GroupID]bool{}
	for i, vol := range volumes {
		ids[i] = vol.ID
		for _, g := range vol.Groups {
			used[g] = true
		}
	}
	byNode := map[storage.NodeID][]storage.GroupID{}
	for _, g := range p.groups {
		if _, node := p.leader(g); used[g.ID] && node != 0 {
			byNode[node] = append(byNode[node], g.ID)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	var mu sync.Mutex // guards blocks and counted
	blocks, counted := make([]int64, len(volumes)), map[storage.GroupID]bool{}
	slots := make(chan struct{}, usageParallel)
	var wg sync.WaitGroup
	for node, groups := range byNode {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			a, err := v.askUsage(ctx, node, usageRequest{Groups: groups, Volumes: ids})
			if err != nil {
				return // its groups stay uncounted
			}
			mu.Lock()
			defer mu.Unlock()
			for i, n := range a.Blocks {
				blocks[i] = addKnown(blocks[i], n)
			}
			for _, g := range groups {
				counted[g] = !slices.Contains(a.Missing, g)
			}
		})
	}
	wg.Wait()
	for i := range volumes {
		all := !slices.ContainsFunc(volumes[i].Groups, func(g storage.GroupID) bool { return !counted[g] })
		if all && blocks[i] >= 0 {
			volumes[i].AllocatedBytes = blocks[i] * storage.BlockSize
		}
	}
}
