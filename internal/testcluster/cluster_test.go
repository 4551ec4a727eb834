package testcluster

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary stand in for storaged: with STANDIN set it serves /readyz until SIGTERM.
func TestMain(m *testing.M) {
	if mode := os.Getenv("STANDIN"); mode != "" {
		os.Exit(standIn(mode, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func standIn(mode string, args []string) int {
	if mode == "dies" {
		fmt.Println("no room on the disk")
		return 7
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	http1 := flags.String("listen-http", "", "")
	join := flags.String("join", "", "")
	bootstrap := flags.Bool("bootstrap", false, "")
	for _, name := range []string{"data-dir", "name", "zone", "listen-peer", "listen-api", "listen-nbd"} {
		flags.String(name, "", "")
	}
	if len(args) == 0 || args[0] != "serve" || flags.Parse(args[1:]) != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Printf("join=%q bootstrap=%v\n", *join, *bootstrap)
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	go func() { fmt.Println(http.ListenAndServe(*http1, nil)) }()
	<-ctx.Done()
	if mode == "deaf" {
		select {}
	}
	return 0
}

// cluster makes a cluster of stand-ins that ends with the test.
func cluster(t *testing.T, mode string) *Cluster {
	t.Helper()
	t.Setenv("STANDIN", mode)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Command: []string{self}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Stop(ctx) // the test that cares has stopped it before
	})
	return c
}

func TestStartAndStop(t *testing.T) {
	c := cluster(t, "well")
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, n := range c.Nodes() {
		if n.PID() == 0 {
			t.Errorf("%s does not run", n.Name)
		}
		want := `join="" bootstrap=true`
		if i > 0 {
			want = fmt.Sprintf("join=%q bootstrap=false", c.Node(0).Peer)
		}
		if log := n.LogTail(5); !strings.Contains(log, want) {
			t.Errorf("%s printed %q, want %q", n.Name, log, want)
		}
	}
	if u, err := c.Usage(); err != nil || u.ResidentBytes < 1<<20 {
		t.Errorf("usage %+v, %v: want some memory", u, err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if pid := c.Node(1).PID(); pid != 0 {
		t.Errorf("node 1 still runs as %d", pid)
	}
}

func TestKillPauseResumeRestart(t *testing.T) {
	c := cluster(t, "well")
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := c.Node(2)
	if err := n.Pause(); err != nil || !n.Paused() {
		t.Errorf("pause: %v, paused %v", err, n.Paused())
	}
	if err := Poll(t.Context(), time.Millisecond, func() bool { return processState(t, n.PID()) == "T" }); err != nil {
		t.Errorf("the paused process is not stopped: %v", err)
	}
	if err := n.Resume(); err != nil || n.Paused() {
		t.Errorf("resume: %v, paused %v", err, n.Paused())
	}
	if err := n.Kill(); err != nil || n.PID() != 0 {
		t.Errorf("kill: %v, pid %d", err, n.PID())
	}
	if err := n.Kill(); err == nil {
		t.Error("a node that does not run was killed without an error")
	}
	if err := c.StartNode(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if log := n.LogTail(1); log != `join="" bootstrap=false` {
		t.Errorf("a node that belongs to a cluster joined again: %q", log)
	}
}

// TestStopPaused: a paused node is stopped all the same.
func TestStopPaused(t *testing.T) {
	c := cluster(t, "well")
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(0).Pause(); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNodeThatDies(t *testing.T) {
	c := cluster(t, "dies")
	err := c.StartNode(t.Context(), 0)
	if err == nil || !strings.Contains(err.Error(), "no room on the disk") || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("start of a node that dies: %v", err)
	}
}

func TestNodeThatIgnoresSIGTERM(t *testing.T) {
	c := cluster(t, "deaf")
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Stop(ctx); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("stop of a deaf node: %v", err)
	}
	if c.Node(0).PID() != 0 {
		t.Error("the deaf node still runs")
	}
}

// TestReadUsage: the CPU time that this process uses is seen.
func TestReadUsage(t *testing.T) {
	before, err := ReadUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var used Usage
	for deadline := time.Now().Add(time.Minute); used.CPU < 20*time.Millisecond; {
		after, err := ReadUsage(os.Getpid())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("used %+v, %v: want 20 ms of CPU at some time", used, err)
		}
		used = after.Since(before)
	}
	if used.ResidentBytes == 0 || used.PeakResidentBytes < used.ResidentBytes {
		t.Errorf("used %+v: want memory", used)
	}
}

func processState(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
}

// TestPortsDiffer: with ports that the kernel chose, closed and chose again, two nodes of a cluster were given the same
// one now and then.
func TestPortsDiffer(t *testing.T) {
	taken := map[int]bool{}
	for range 50 {
		ports, err := freePorts("127.0.0.1", 4, taken)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if p < firstPort || p >= endPort {
				t.Errorf("port %d lies where outgoing connections take theirs", p)
			}
		}
	}
	if len(taken) != 200 {
		t.Errorf("%d different ports of 200", len(taken))
	}
}
