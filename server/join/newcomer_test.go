package join

import (
	"fmt"
	"io"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// TestNextStep: a cluster is made by the first of the list alone, and only when all others have said that they have none.
func TestNextStep(t *testing.T) {
	x, y := storage.ClusterID{1}, storage.ClusterID{2}
	list := []string{"a:1", "b:1", "c:1"}
	hash := peer.ListHash(list)
	silent := func(addr string) answer {
		return answer{addr: addr, err: storage.E("greet", storage.KindUnavailable, addr, io.EOF)}
	}
	none := func(addr string, instance uint64) answer {
		return answer{addr: addr, who: peer.Greeting{Speaker: peer.Speaker{Instance: instance, List: hash}}}
	}
	member := func(addr string, c storage.ClusterID) answer {
		return answer{addr: addr, who: peer.Greeting{Cluster: c, Node: 7, Speaker: peer.Speaker{Instance: 99}}}
	}
	joiner := func(addr string) answer {
		return answer{addr: addr, who: peer.Greeting{Speaker: peer.Speaker{Instance: 98}}}
	}
	stranger := none("c:1", 3)
	stranger.who.List++
	for _, c := range []struct {
		name      string
		bootstrap bool
		self      string
		answers   []answer
		want      string // "make", "ask ADDRS", or a part of why it waits or gives up
	}{
		{"the first, all others have none", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "make"},
		{"known by its instance, not its address", true, "z:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "make"},
		{"its own address does not answer", true, "a:1", []answer{silent("a:1"), none("b:1", 2), none("c:1", 3)}, "make"},
		{"others only join", true, "a:1", []answer{none("a:1", 1), joiner("b:1"), none("c:1", 3)}, "make"},
		{"the second", true, "b:1", []answer{none("a:1", 5), none("b:1", 1), none("c:1", 3)}, "first node of --join, a:1"},
		{"one is silent", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), silent("c:1")}, "an answer of c:1 (EOF)"},
		{"one has a cluster", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), member("c:1", x)}, "ask [c:1]"},
		{"one has a cluster, one is silent", true, "a:1", []answer{none("a:1", 1), silent("b:1"), member("c:1", x)}, "ask [c:1]"},
		{"two clusters", true, "a:1", []answer{none("a:1", 1), member("b:1", x), member("c:1", y)}, "different clusters"},
		{"another list", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), stranger}, "c:1 was started with another --join"},
		{"not in the list", true, "z:1", []answer{none("a:1", 5), none("b:1", 2), none("c:1", 3)}, "z:1, is not in --join"},
		{"two lead to this node", true, "a:1", []answer{none("a:1", 1), none("b:1", 1), none("c:1", 3)}, "a:1, b:1 all lead to this node"},
		{"alone in the list", true, "a:1", []answer{none("a:1", 1)}, "make"},
		{"no bootstrap, all others have none", false, "a:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "--bootstrap"},
		{"no bootstrap, one has a cluster", false, "z:1", []answer{none("a:1", 4), member("b:1", x)}, "ask [b:1]"},
		{"no bootstrap, itself", false, "a:1", []answer{none("a:1", 1)}, "is this node itself"},
	} {
		var addrs []string
		for _, a := range c.answers {
			addrs = append(addrs, a.addr)
		}
		config := Config{Bootstrap: c.bootstrap, Speaker: peer.Speaker{Address: c.self, Instance: 1}, Addrs: addrs}
		var got string
		switch s := nextStep(config, c.answers); {
		case s.make:
			got = "make"
		case s.ask != nil:
			got = fmt.Sprintf("ask %v", s.ask)
		case s.err != nil:
			got = s.err.Error()
		default:
			got = s.wait
		}
		if c.want == "make" && got != "make" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
