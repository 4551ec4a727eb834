package server

import (
	"context"
	"testing"
	"time"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/volume"
)

// TestAllocatedBytes: what volumes hold is shown as it is now, alone and in lists.
func TestAllocatedBytes(t *testing.T) {
	n := startNode(t)
	shown := n.admin
	for _, name := range []string{"data", "empty"} {
		if _, err := shown.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: 64 << 20, Groups: 2}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := n.gateway.Open(t.Context(), "data", volume.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close(context.Background())
	for _, step := range []struct {
		name string
		do   func() error
		want int64
	}{
		{"nothing", func() error { return nil }, 0},
		{"over two extents of two groups", func() error { return v.WriteAt(t.Context(), make([]byte, 64<<10), 4<<20-32<<10) }, 64 << 10},
		{"again", func() error { return v.WriteAt(t.Context(), make([]byte, 64<<10), 4<<20-32<<10) }, 64 << 10},
		{"a byte", func() error { return v.WriteAt(t.Context(), []byte{1}, 40<<20) }, 68 << 10},
		{"a discard", func() error { return v.Discard(t.Context(), 4<<20-16<<10, 32<<10) }, 36 << 10},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.name, err)
		}
		got, err := shown.Volume(t.Context(), "data")
		for deadline := time.Now().Add(10 * time.Second); err == nil && got.AllocatedBytes < 0 && time.Now().Before(deadline); {
			got, err = shown.Volume(t.Context(), "data") // the node has not reported who leads yet
		}
		if err != nil || got.AllocatedBytes != step.want {
			t.Errorf("%s: %d bytes, %v; want %d", step.name, got.AllocatedBytes, err, step.want)
		}
		list, err := shown.Volumes(t.Context(), api.VolumeFilter{}, "", 10)
		if err != nil || len(list) != 2 || list[0].AllocatedBytes != step.want || list[1].AllocatedBytes != 0 {
			t.Errorf("%s: listed as %+v, %v; want %d and 0", step.name, list, err, step.want)
		}
	}
}
