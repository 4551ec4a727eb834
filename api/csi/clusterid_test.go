package csi

import (
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestVolumeIDs: a volume's id says which cluster it is of, and those that were given out before it did are ids still.
func TestVolumeIDs(t *testing.T) {
	cluster := storage.ClusterID{0xab, 0xcd, 0x01, 0x23, 0x45}
	v := storage.VolumeRef{Name: "pvc-1", ID: 7}
	for id, mark := range map[string]string{volumeID(v, cluster): "abcd0123", volumeID(v, storage.ClusterID{}): "", "pvc-1.7.abcd0123": "abcd0123"} {
		got, ok := parseVolumeID(id)
		if !ok || got != v {
			t.Errorf("%s: %v, %v", id, got, ok)
		}
		if meant := api.ClusterMeant(forVolume(t.Context(), id)); meant != mark {
			t.Errorf("%s is meant for cluster %q, want %q", id, meant, mark)
		}
	}
	for _, id := range []string{"pvc-1.7.", "pvc-1.7.abcd012", "pvc-1.7.abcd01234", "pvc-1.7.ABCD0123", "pvc-1..abcd0123", "pvc-1.7.abcd0123.x", ".7.abcd0123"} {
		if got, ok := parseVolumeID(id); ok {
			t.Errorf("%q is taken for %v", id, got)
		}
	}
}
