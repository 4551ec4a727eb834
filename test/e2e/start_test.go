//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// Exit codes of storaged that tests know.
const (
	exitOther   = 1
	exitUsage   = 2
	exitDamaged = 3
)

// TestRefusals: what cannot be started ends by itself, soon, and says why.
func TestRefusals(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nbd")
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 1, Args: []string{"--nbd-socket", socket}})
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	n := c.Node(0)
	other := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 1})
	if err := other.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := other.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	for _, tc := range []struct {
		name string
		exit int
		want []string // all of them
		args []string
	}{
		{"directory in use", exitOther, []string{"in use", n.DataDir}, serveArgs(t, n.DataDir)},
		{"another cluster", exitOther, []string{"belongs to another cluster", other.Node(0).DataDir, "empty"},
			append(serveArgs(t, other.Node(0).DataDir), "--join", n.Peer)},
		{"name taken", exitOther, []string{"has this name already", "--name"},
			append(serveArgs(t, fresh), "--join", n.Peer, "--name", n.Name)},
		{"addresses in use", exitUsage, []string{n.NBD, "--listen-nbd", n.API, "address already in use"},
			n.CommandLine("")[1:]},
		{"socket in use", exitUsage, []string{"--nbd-socket", socket, "answers"}, append(serveArgs(t, fresh), "--bootstrap", "--nbd-socket", socket)},
		{"an empty directory and no flag", exitUsage, []string{fresh, "is empty", "--bootstrap", "--join HOST"}, serveArgs(t, fresh)},
		{"joins itself", exitUsage, []string{"--join", "this node itself"}, joinsItself(t, fresh)},
		{"wrong advertise", exitUsage, []string{"--advertise", "without :7001"}, append(serveArgs(t, fresh), "--advertise", "a:7001")},
		{"no directory", exitUsage, []string{"--data-dir"}, []string{"serve"}},
		{"flag unknown", exitUsage, []string{"--bogus", "storaged serve --help"}, append(serveArgs(t, fresh), "--bogus")},
		{"size that is none", exitUsage, []string{"--reserve", "10Q"}, append(serveArgs(t, fresh), "--reserve", "10Q")},
		{"segments smaller than an entry", exitUsage, []string{"--segment-size", "from 2MiB"}, append(serveArgs(t, fresh), "--segment-size", "1MiB")},
		{"several at once", exitUsage, []string{"--replicas", "--groups", "--read-mode", "--nbd-tls-require"},
			append(serveArgs(t, fresh), "--replicas", "2", "--groups", "3", "--read-mode", "x", "--nbd-tls-require")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exit, out := runStoraged(t, tc.args...)
			if exit != tc.exit {
				t.Errorf("exit code %d, want %d", exit, tc.exit)
			}
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("storaged %v printed:\n%s", tc.args, out)
			}
		})
	}
	// Nobody was harmed: the node lives, and answers on its socket.
	if conn, err := net.Dial("unix", socket); err != nil {
		t.Error(err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// joinsItself returns the arguments of a node whose --join is its own address.
func joinsItself(t *testing.T, dataDir string) []string {
	t.Helper()
	args := serveArgs(t, dataDir)
	return append(args, "--join", args[slices.Index(args, "--listen-peer")+1])
}

// serveArgs returns the arguments of a node on free ports.
func serveArgs(t *testing.T, dataDir string) []string {
	t.Helper()
	ports, err := testcluster.FreePorts("127.0.0.1", 4)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"serve", "--data-dir", dataDir}
	for i, listener := range []string{"peer", "api", "nbd", "http"} {
		args = append(args, "--listen-"+listener, fmt.Sprintf("127.0.0.1:%d", ports[i]))
	}
	return args
}

// runStoraged runs storaged, which must end by itself, and returns its exit code and what it printed.
func runStoraged(t *testing.T, args ...string) (exit int, out string) {
	t.Helper()
	return runProgram(t, *storagedFlag, args...)
}

// runProgram is runStoraged for what runs it.
func runProgram(t *testing.T, program string, args ...string) (exit int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var b bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		t.Fatalf("%s %v did not end by itself: %v; it printed:\n%s", program, args, err, b.String())
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

// TestJoinNobody: a node whose cluster does not answer says so, goes on trying, and joins when it does.
func TestJoinNobody(t *testing.T) {
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 2})
	joined := make(chan error, 1)
	go func() { joined <- c.StartNode(t.Context(), 1) }()
	says(t, c.Node(1), "waiting for a cluster")
	says(t, c.Node(1), c.Node(0).Peer)
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	says(t, c.Node(1), "joined")
}

// says waits until a node's log contains a text.
func says(t *testing.T, n *testcluster.Node, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := testcluster.Poll(ctx, 20*time.Millisecond, func() bool {
		return strings.Contains(n.LogTail(1000), text)
	}); err != nil {
		t.Fatalf("%s does not say %q; it says:\n%s", n.Name, text, n.LogTail(30))
	}
}
