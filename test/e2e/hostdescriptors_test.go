//go:build e2e && devices

package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// TestGatewayWithFewDescriptors: clients that connect to a gateway's ports and say nothing, more of them than it may have files
// open, do not keep it from its nodes: one that was away is connected to again, and serves when another one goes. When they are
// gone the gateway attaches as before.
func TestGatewayWithFewDescriptors(t *testing.T) {
	c := startWithVolume(t, nil)
	if err := c.CreateVolume(t.Context(), "other", 64<<20); err != nil {
		t.Fatal(err)
	}
	port, err := testcluster.FreePorts("127.0.0.1", 1)
	if err != nil {
		t.Fatal(err)
	}
	metrics := net.JoinHostPort("127.0.0.1", strconv.Itoa(port[0]))
	g := hosttest.Start(t, c, hosttest.Options{Binary: *storagedFlag, Name: "host-a", Prefix: []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, fewFiles/2), "sh"}, Args: []string{"--listen-http", metrics}})
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	at := mounted(t, a)
	j := startJournal(t, filepath.Join(at, "journal"))
	j.await(t, 50)
	idle := holdAt(t, "tcp", metrics, 200)
	idle = append(idle, holdAt(t, "unix", g.Socket, 200)...)
	defer func() { closeAll(idle) }()
	for i, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		j.await(t, 50)
		if err := c.StartNode(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		clustertest.WaitFull(t, c)
		j.await(t, 50)
	}
	awaitText(t, "the gateway's log", func() string { return g.LogText(t) }, func(text string) bool {
		return strings.Contains(text, "port=socket") && strings.Contains(text, "port=HTTP")
	})
	closeAll(idle)
	if b := g.MustAttach(t, host.Request{Volume: "other", Via: host.ViaFUSE}); b.State != host.StateReady {
		t.Errorf("afterwards: %+v", b)
	}
	j.end()
	run(t, "umount", at)
}
