package main

import (
	"bytes"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestOpenOn: the list names whoever serves a volume, once: the gateways of hosts, and the nodes whose NBD clients have it open.
func TestOpenOn(t *testing.T) {
	for name, c := range map[string]struct {
		v    api.Volume
		want string
	}{
		"nobody":           {api.Volume{}, "-"},
		"a host's gateway": {api.Volume{Sessions: []api.Session{{NodeName: "host-7"}}}, "host-7"},
		"an NBD client of a node": {api.Volume{Sessions: []api.Session{{Node: 2, NodeName: "b"}},
			Connections: []api.Connection{{Node: 2, NodeName: "b", Client: "10.0.0.7:41000"}, {Node: 2, NodeName: "b", Client: "10.0.0.7:41002"}}}, "b"},
		"an NBD client that has written and read nothing": {api.Volume{
			Connections: []api.Connection{{Node: 3, NodeName: "c", Client: "10.0.0.7:41000"}}}, "c"},
		"several hosts and a node": {api.Volume{Sessions: []api.Session{{NodeName: "host-9"}, {NodeName: "host-7"}, {Node: 1, NodeName: "a"}},
			Connections: []api.Connection{{Node: 3, NodeName: "c", Client: "10.0.0.7:41000"}}}, "a,c,host-7,host-9"},
		"a node whose name is not known": {api.Volume{Sessions: []api.Session{{Node: 4}}}, "4"},
	} {
		var out bytes.Buffer
		r := newRig(t)
		c.v.Name, c.v.State, c.v.CreatedAt = "web", storage.VolumeReady, r.now()
		r.app(&out, &out).writeVolumes(&out, []api.Volume{c.v}, false)
		lines := strings.Split(out.String(), "\n")
		at := strings.Index(lines[0], "OPEN ON")
		if at < 0 || len(lines) < 2 {
			t.Fatalf("%s: %q", name, out.String())
		}
		if got, _, _ := strings.Cut(lines[1][at:], " "); got != c.want {
			t.Errorf("%s: open on %q, want %q", name, got, c.want)
		}
	}
}
