//go:build e2e && netns

package e2e

import (
	"testing"

	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// TestSilentPartition: a node that nobody hears any more, without a connection being closed, costs a client of
// another node no error and no stall beyond the bound. It comes back and holds what was written meanwhile.
func TestSilentPartition(t *testing.T) {
	network := clustertest.NewNetwork(t)
	c := startWithVolume(t, network)
	for victim := range c.Nodes() {
		t.Run(c.Node(victim).Name, func(t *testing.T) {
			l := startLoad(t, c.Node((victim+1)%3), volumeName)
			l.awaitMore(t, 100)
			if err := network.Isolate(victim); err != nil {
				t.Fatal(err)
			}
			checkStall(t, l.awaitMore(t, 500), stallAfterPartition)
			if err := network.Heal(); err != nil {
				t.Fatal(err)
			}
			clustertest.WaitFull(t, c)
			l.awaitMore(t, 100)
			l.end(t, c.Node(victim), volumeName)
		})
	}
}
