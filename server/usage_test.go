package server

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/volume"
)

// TestCreateIsARequest: a volume made without a request id has one too, so that a proposal of it that is repeated after a
// lost answer is not told that the name is taken; and another request is.
func TestCreateIsARequest(t *testing.T) {
	n := startNode(t)
	shown := &view{n}
	nv := api.NewVolume{Name: "data", SizeBytes: 64 << 20, Groups: 1}
	if _, err := shown.CreateVolume(t.Context(), nv); err != nil {
		t.Fatal(err)
	}
	n.control.View(func(s *catalog.State) {
		if v, ok := s.VolumeByName("data"); !ok || v.RequestID == "" {
			t.Errorf("it was made by request %q", v.RequestID)
		}
	})
	if _, err := shown.CreateVolume(t.Context(), nv); !errors.Is(err, storage.ErrExists) {
		t.Errorf("made again: %v; want that it exists", err)
	}
}

// TestAllocatedBytes: what volumes hold is shown as it is now, alone and in lists.
func TestAllocatedBytes(t *testing.T) {
	n := startNode(t)
	shown := &view{n}
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
		list, err := shown.Volumes(t.Context(), "", 10)
		if err != nil || len(list) != 2 || list[0].AllocatedBytes != step.want || list[1].AllocatedBytes != 0 {
			t.Errorf("%s: listed as %+v, %v; want %d and 0", step.name, list, err, step.want)
		}
	}
}

// fakeCounter knows the blocks of volumes by group.
type fakeCounter map[storage.GroupID]map[storage.VolumeID]int64

func (f fakeCounter) MappedBlocks(g storage.GroupID, ids []storage.VolumeID) ([]int64, error) {
	if f[g] == nil {
		return nil, storage.E("find", storage.KindNotLeader, "group "+g.String(), nil)
	}
	out := make([]int64, len(ids))
	for i, id := range ids {
		out[i] = f[g][id]
	}
	return out, nil
}

func TestCountBlocks(t *testing.T) {
	host := fakeCounter{1: {1: 5, 2: -1}, 2: {1: 7, 2: 3}}
	a, err := countBlocks(host, usageRequest{Groups: []storage.GroupID{1, 2, 3}, Volumes: []storage.VolumeID{1, 2, 9}})
	if err != nil || !slices.Equal(a.Blocks, []int64{12, -1, 0}) || !slices.Equal(a.Missing, []storage.GroupID{3}) {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := countBlocks(host, usageRequest{Volumes: make([]storage.VolumeID, maxUsageVolumes+1)}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("too many volumes: %v", err)
	}
	var q usageRequest
	for _, bad := range [][]byte{nil, []byte("{"), make([]byte, maxUsageBytes+1)} {
		if err := decodeUsage(bad, &q); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}
