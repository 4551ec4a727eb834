package server

import (
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestEventsOfANode: what has happened in a cluster is told by its node.
func TestEventsOfANode(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	if _, err := n.admin.CreateVolume(t.Context(), api.NewVolume{Name: "web", SizeBytes: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]api.EventFilter{
		"volume web is created with 8388608 bytes": {Volume: "web"},
		"node a has joined the cluster":            {Kinds: []storage.EventKind{storage.EventNodeJoined}},
	} {
		if got, err := n.admin.Events(t.Context(), want); err != nil || !got.Kept || len(got.Events) != 1 || got.Events[0].Text != f {
			t.Errorf("%+v, %v; want %q", got, err, f)
		}
	}
}
