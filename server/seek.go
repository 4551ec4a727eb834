package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
)

const (
	startsFile = "starts"
	// seekInterval is the time between two rounds of a node that knows no leader of the catalog.
	seekInterval = time.Second
	// seekPatience bounds one round, maxSeeking the addresses of one, maxPlacesBytes what another node tells.
	seekPatience   = 3 * time.Second
	maxSeeking     = 128
	maxPlacesBytes = 1 << 20
)

// countStart counts the starts of the node with this directory: of two addresses that a node has given, that of the later start
// is the newer. A directory without the file, of an earlier version or of a node that has just joined, begins at 1.
func (n *node) countStart() error {
	path := filepath.Join(n.catalogDir(), startsFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return storage.E("read", storage.KindIO, path, err)
	}
	if err == nil {
		if n.starts, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return storage.E("read", storage.KindCorrupt, path, err)
		}
	}
	n.starts++
	return durable.WriteFile(path, []byte(strconv.FormatUint(n.starts, 10)+"\n"))
}

// seek brings this node, as long as it knows no leader of the catalog, in touch with every node that it knows of and with those
// that --join names, again and again. A leader learns from the greeting where this node is now, and speaks to it; nodes that have all
// moved tell one another where the others are. Whoever knows a leader has no need to.
func (n *node) seek(ctx context.Context) {
	tick := time.NewTicker(seekInterval)
	defer tick.Stop()
	for {
		if n.control.Leader() == 0 {
			n.seekOnce(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *node) seekOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, seekPatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, addr := range n.seekAddrs() {
		wg.Go(func() { n.exchangePlaces(ctx, addr) })
	}
	wg.Wait()
}

// seekAddrs returns where other nodes may be: as recorded, as heard, and as --join says.
func (n *node) seekAddrs() []string {
	seen := map[string]bool{n.config.advertised(n.listeners.peer.Addr()): true}
	var addrs []string
	add := func(a string) {
		if a != "" && !seen[a] && len(addrs) < maxSeeking {
			seen[a] = true
			addrs = append(addrs, a)
		}
	}
	joins, _ := n.config.joins() // checked by Validate
	for _, a := range joins {
		add(a)
	}
	places := n.peers.Places()
	for _, id := range slices.Sorted(maps.Keys(places)) {
		add(places[id].Address)
	}
	book := n.control.Book()
	for _, id := range slices.Sorted(maps.Keys(book)) {
		add(book[id])
	}
	return addrs
}

// exchangePlaces tells the node at an address where nodes are, and takes in what it knows.
func (n *node) exchangePlaces(ctx context.Context, addr string) {
	body, err := json.Marshal(n.peers.Places())
	if err != nil {
		return
	}
	resp, err := n.peers.CallAddr(ctx, addr, &peer.Request{Method: peer.MethodNodeInfo, Payload: [][]byte{body}})
	if err != nil {
		n.logger.Debug("a node was not asked where the others are", "addr", addr, "error", err)
		return
	}
	defer resp.Release()
	n.takePlaces(resp.Payload)
}

func (n *node) takePlaces(b []byte) {
	if len(b) == 0 || len(b) > maxPlacesBytes {
		return
	}
	places := map[storage.NodeID]peer.Place{}
	if json.Unmarshal(b, &places) != nil || len(places) > catalog.MaxNodes {
		return
	}
	n.peers.Told(places)
}

// servePlaces answers MethodNodeInfo. Members learn where nodes are; strangers and gateways learn nothing, as before.
func (n *node) servePlaces(in *peer.Inbound) {
	if in.From == 0 {
		in.Reply(nil, nil)
		return
	}
	n.takePlaces(in.Payload)
	body, err := json.Marshal(n.peers.Places())
	if err != nil {
		in.ReplyError(storage.E("tell places", storage.KindInternal, "", err))
		return
	}
	in.Reply(nil, [][]byte{body})
}

// judgeWhere says of a node what its connections, or the lack of them, tell that its state does not: that it is under another
// address than recorded, that it speaks and is not reached, that two processes claim to be it. ok is false when there is
// nothing to say.
func judgeWhere(name string, up bool, recorded string, w peer.Whereabouts) (text, step string, ok bool) {
	switch {
	case w.Second != nil:
		return fmt.Sprintf("a second process with its identity is refused: %s at %s; the first is %s at %s", w.Second.Process,
				w.Second.Address, w.Process, w.Address),
			"stop the second one: its data directory is a copy. If it is the copy that is to go on, stop the first", true
	case !up && w.Address != "" && w.Since < whereMemory && w.Address != recorded && w.Reached:
		return fmt.Sprintf("it has moved from %s to %s and comes back", recorded, w.Address), "wait", true
	case !up && w.Address != "" && w.Connected && !w.Reached && w.Err != nil: // a node that has died speaks no more
		return fmt.Sprintf("it speaks to this node, and is not reached at %s, which it says is its address: %v", w.Address, w.Err),
			"look at --advertise and --listen-peer of node " + name + ", and at firewalls; do not remove it", true
	}
	return "", "", false
}

// whereMemory is how long what a node has said lately counts.
const whereMemory = time.Minute
