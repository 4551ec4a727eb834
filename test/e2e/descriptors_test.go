//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// fewFiles is about the lowest limit of open files that a node starts with.
const fewFiles = 256

// startWithFewFiles starts three nodes that may have few files open, with segments so small that the log has more of them.
func startWithFewFiles(t *testing.T) *testcluster.Cluster {
	t.Helper()
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Args: []string{"--segment-size", "2MiB"},
		Prefix: []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, fewFiles), "sh"}})
	if err := c.CreateVolume(t.Context(), volumeName, 1<<30); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFewDescriptors: neither a log of more segments than a process may have files open, nor clients that connect to each port
// and say nothing, in numbers above that, keep a writer from going on. What is refused is counted and said; others are served
// meanwhile; afterwards all is well by itself.
func TestFewDescriptors(t *testing.T) {
	c := startWithFewFiles(t)
	n := c.Node(0)
	fillLog(t, n, 2*fewFiles) // half as many segments, four times as many as are kept open
	l := startLoad(t, n, volumeName)
	l.awaitMore(t, 200)
	var idle []net.Conn
	defer func() { closeAll(idle) }()
	for _, port := range []struct{ name, address, metric string }{
		{"NBD", n.NBD, `storage_nbd_connections_total{end="refused"}`}, {"API", n.API, "storage_api_refused_connections_total"},
		{"peers'", n.Peer, "storage_peer_refused_connections_total"}, {"HTTP", n.HTTP, "storage_http_refused_connections_total"},
	} {
		held := hold(t, port.address, 200)
		idle = append(idle, held...)
		l.awaitMore(t, 100)
		awaitText(t, "the metrics of the "+port.name+" port", func() string { return metricsFrom(t, n) }, func(text string) bool {
			return metric(text, port.metric) >= 100
		})
		awaitText(t, "status", func() string { return statusText(t, c) }, func(text string) bool {
			return strings.Contains(text, "node "+n.Name+": connections to the "+port.name+" port are closed at once")
		})
		if log := n.LogTail(1000); !strings.Contains(log, `port=`+port.name) {
			t.Errorf("the log does not name the %s port", port.name)
		}
		closeAll(held)
	}
	crowd(t, n, l)
	awaitText(t, "status afterwards", func() string { return statusText(t, c) }, func(text string) bool { return text == "" })
	l.awaitMore(t, 200)
	l.end(t, c.Node(1), volumeName)
}

// fillLog writes so many MiB through a node.
func fillLog(t *testing.T, n *testcluster.Node, mib int) {
	t.Helper()
	client := connect(t, n, volumeName)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i := range mib {
		if err := client.WriteAt(ctx, []byte(strings.Repeat(fmt.Sprintf("%015d\n", i), 1<<16)), int64(i)<<20); err != nil {
			t.Fatalf("MiB %d: %v", i, err)
		}
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// hold opens connections that say nothing; some are closed by the other side.
func hold(t *testing.T, address string, count int) []net.Conn {
	t.Helper()
	return holdAt(t, "tcp", address, count)
}

// holdAt is hold in any network.
func holdAt(t *testing.T, network, address string, count int) (held []net.Conn) {
	t.Helper()
	for range count {
		nc, err := net.DialTimeout(network, address, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, nc)
	}
	return held
}

func closeAll(held []net.Conn) {
	for _, nc := range held {
		_ = nc.Close() // again, for most
	}
}

// crowd has 200 clients use a volume and do nothing, as many as are let in. The writer goes on, and so do the other ports.
func crowd(t *testing.T, n *testcluster.Node, l *load) {
	t.Helper()
	var clients []*nbdclient.Client
	refused := 0
	for range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		client, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: n.NBD, Export: volumeName + "?access=shared"})
		cancel()
		if err != nil {
			refused++
			continue
		}
		clients = append(clients, client)
	}
	if len(clients) < 4 || refused < 100 {
		t.Errorf("%d clients are served, %d refused", len(clients), refused)
	}
	l.awaitMore(t, 200)
	if err := httpGet(t, n, "/livez"); err != nil {
		t.Error(err)
	}
	for _, client := range clients {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func httpGet(t *testing.T, n *testcluster.Node, path string) error {
	t.Helper()
	_, err := body(t.Context(), "http://"+n.HTTP+path)
	return err
}

// body gets a page over a connection of its own, from another address of loopback than the idle clients'.
func body(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.DialContext}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 8<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return string(text), err
}

func metricsFrom(t *testing.T, n *testcluster.Node) string {
	t.Helper()
	text, err := body(t.Context(), "http://"+n.HTTP+"/metrics")
	if err != nil {
		t.Fatalf("metrics of %s: %v", n.Name, err)
	}
	return text
}

// metric returns the value of a series; 0 if it is not there.
func metric(text, series string) (v float64) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			_, _ = fmt.Sscan(value, &v) // 0 then, too
		}
	}
	return v
}

// statusText returns what is wrong with the cluster, a line for each.
func statusText(t *testing.T, c *testcluster.Cluster) string {
	t.Helper()
	s, err := c.Status(t.Context())
	if err != nil {
		return "status: " + err.Error()
	}
	var lines []string
	for _, r := range s.GetReasons() {
		lines = append(lines, r.GetSubject()+": "+r.GetText())
	}
	return strings.Join(lines, "\n")
}

// awaitText waits until a text is as wanted.
func awaitText(t *testing.T, what string, read func() string, ok func(string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	text := ""
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { text = read(); return ok(text) }); err != nil {
		t.Fatalf("%s: %v; last:\n%s", what, err, text)
	}
}

// TestTooFewDescriptors: a limit that the disk and the other nodes alone are too much for is told at the start.
func TestTooFewDescriptors(t *testing.T) {
	args := append([]string{"-c", `ulimit -n 64 && exec "$@"`, "sh", *storagedFlag}, append(serveArgs(t, t.TempDir()), "--bootstrap")...)
	exit, out := runProgram(t, "sh", args...)
	if exit != exitUsage || !strings.Contains(out, "limit of open files") || !strings.Contains(out, "ulimit -n") {
		t.Errorf("exit code %d, want %d; it says:\n%s", exit, exitUsage, out)
	}
}
