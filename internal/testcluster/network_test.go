//go:build chaos

package testcluster

import (
	"os"
	"os/exec"
	"testing"
)

// TestNetworksApart needs root: networks that are there at the same time have addresses of their own, however they came to begin
// their search at the same one.
func TestNetworksApart(t *testing.T) {
	hosts := map[string]bool{}
	for range 3 {
		n, err := NewNetwork(1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		hosts[n.Host(0)] = true
	}
	if len(hosts) != 3 {
		t.Errorf("three networks have the addresses %v", hosts)
	}
}

// TestNetworkAgain needs root: when a network is closed nothing of it is in the way of the next, which has the same names.
func TestNetworkAgain(t *testing.T) {
	for range 30 {
		n, err := NewNetwork(2)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNetwork needs root. It runs stand-ins in namespaces and looks who reaches whom.
func TestNetwork(t *testing.T) {
	network, err := NewNetwork(3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("STANDIN", "well")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Command: []string{self}, Dir: t.TempDir(), Host: network.Host, Prefix: network.Prefix,
		Ports: &Ports{Peer: 7001, API: 7000, NBD: 10809, HTTP: 7002}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	reaches := func(from, to int) bool {
		dial := "exec 3<>/dev/tcp/" + network.Host(to) + "/7002"
		line := network.in(from, "timeout", "1", "bash", "-c", dial)
		return exec.Command(line[0], line[1:]...).Run() == nil
	}
	expect := func(when string, from, to int, want bool) {
		t.Helper()
		if got := reaches(from, to); got != want {
			t.Errorf("%s: node %d reaches node %d: %v, want %v", when, from, to, got, want)
		}
	}
	expect("healthy", 0, 1, true)
	if err := network.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	expect("0 and 1 cut", 0, 1, false)
	expect("0 and 1 cut", 1, 0, false)
	expect("0 and 1 cut", 0, 2, true)
	if err := network.Heal(); err != nil {
		t.Fatal(err)
	}
	expect("healed", 0, 1, true)
	if err := network.Isolate(2); err != nil {
		t.Fatal(err)
	}
	expect("2 alone", 2, 0, false)
	expect("2 alone", 1, 2, false)
	expect("2 alone", 0, 1, true)
	if why := c.Node(2).ready(t.Context()); why != "" {
		t.Errorf("a node that is alone is not reached from outside: %s", why)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
