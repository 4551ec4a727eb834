package server

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
)

// startNode runs a cluster of one node, with files in a directory of the test, and returns it when it is ready.
func startNode(t *testing.T, edits ...func(*Config)) *node {
	t.Helper()
	const any = "127.0.0.1:0"
	config := Config{DataDir: t.TempDir(), Name: "a", Bootstrap: true, ListenPeer: any, ListenAPI: any, ListenNBD: any, ListenHTTP: any,
		SegmentBytes: 4 << 20, FreeSegments: 2, CacheBytes: 4 << 20, LogCacheBytes: 4 << 20, Replicas: 1, Groups: 2,
		HeartbeatTimeout: 100 * time.Millisecond, ReadMode: "lease", MaxAppendEntries: 64, NBDConnections: 16,
		LogLevel: "error", LogFormat: "text", ShutdownTimeout: 10 * time.Second}
	for _, edit := range edits {
		edit(&config)
	}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := config.setDefaults(); err != nil {
		t.Fatal(err)
	}
	n := newNode(config, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for problems := n.view.Unready(); len(problems) > 0; problems = n.view.Unready() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the node is not ready: %v", problems)
		}
	}
	return n
}

// TestViewConformance: what a real node shows keeps the promises of api.Cluster, as the one in memory does.
func TestViewConformance(t *testing.T) {
	t.Parallel()
	apitest.Conformance(t, func(t *testing.T) api.Cluster { return startNode(t).admin })
}
