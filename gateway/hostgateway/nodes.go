package hostgateway

import (
	"context"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// nodes is what the gateway knows of the nodes of its cluster, and keeps for the next start. The endpoints of the configuration may
// all be gone one day, for example removed from the cluster and replaced by others.
type nodes struct {
	gateway *Gateway
	news    chan struct{} // capacity 1: they are others than before

	mu    sync.Mutex  // guards known; held while it is written down, so that the newest is what stays
	known clusterFile // as it is written down
}

func (g *Gateway) newNodes(known clusterFile) *nodes {
	g.api.Learn(known.APIs)
	return &nodes{gateway: g, news: make(chan struct{}, 1), known: known}
}

// set takes the nodes' peer addresses.
func (n *nodes) set(addrs map[storage.NodeID]string) {
	n.note(func(known *clusterFile) { known.Nodes = addrs })
	select {
	case n.news <- struct{}{}:
	default:
	}
}

func (n *nodes) note(change func(known *clusterFile)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.known)
	if err := n.gateway.state.writeCluster(n.known); err != nil {
		n.gateway.env.logger.Warn("the nodes' addresses could not be written down", "error", err)
	}
}

// run asks for the addresses of the nodes' APIs when the nodes are others than before, until ctx is done. Without an answer they are
// asked for when the nodes change again, or at the next start.
func (n *nodes) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.news:
			n.ask(ctx)
		}
	}
}

func (n *nodes) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := n.gateway.api.Nodes(ctx)
	if err != nil {
		return
	}
	apis := apisOf(list)
	n.gateway.api.Learn(apis)
	n.note(func(known *clusterFile) { known.APIs = apis })
}

// apisOf returns the addresses of the APIs of nodes that were not removed.
func apisOf(list []api.Node) (apis []string) {
	for _, n := range list {
		if n.State != storage.NodeRemoved && n.Addrs.API != "" {
			apis = append(apis, n.Addrs.API)
		}
	}
	return apis
}
