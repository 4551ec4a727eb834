package server

import (
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/server/catalog"
)

// TestDeletedVolumeIsForgotten: when a deletion is finished, neither the catalog nor a group remembers the volume, and the next
// volumes are served.
func TestDeletedVolumeIsForgotten(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	shown := n.admin
	use := func(name string) (id storage.VolumeID) {
		if _, err := shown.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: 64 << 20, Groups: 2, RequestID: name}); err != nil {
			t.Fatal(err)
		}
		v, err := n.gateway.Open(t.Context(), name, volume.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := v.WriteAt(t.Context(), make([]byte, 8<<20), 0); err != nil {
			t.Fatal(err)
		}
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.control.View(func(s *catalog.State) {
			x, _ := s.VolumeByName(name)
			id = x.ID
		})
		return id
	}
	for _, name := range []string{"first", "second"} {
		id := use(name)
		for deadline := time.Now().Add(30 * time.Second); ; <-time.After(10 * time.Millisecond) {
			err := shown.DeleteVolume(t.Context(), name, 0) // once the gateway has detached it
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		remembered := func() (by []string) {
			n.control.View(func(s *catalog.State) {
				for _, v := range s.DeletingVolumes() {
					by = append(by, "the catalog: "+v.Name)
				}
			})
			for _, key := range n.store.Groups() {
				if _, known := n.store.Group(key).Volume(id); known {
					by = append(by, "group "+key.String())
				}
			}
			return by
		}
		for deadline := time.Now().Add(30 * time.Second); ; <-time.After(10 * time.Millisecond) {
			by := remembered()
			if len(by) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("volume %s is remembered by %v", name, by)
			}
		}
	}
}
