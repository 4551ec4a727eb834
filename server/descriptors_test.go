package server

import (
	"errors"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// Whatever the limit: all that may be open together is within it, and everybody has something.
func TestSharesOfDescriptors(t *testing.T) {
	for _, ahead := range []int{1, 8, 1024} {
		for limit := uint64(0); limit < 20_000; limit += 7 {
			d, err := shareDescriptors(limit, 4096, ahead)
			if err != nil {
				if !errors.Is(err, storage.ErrInvalid) || limit >= uint64(4*(leastRoom+ahead)) || !strings.Contains(err.Error(), "ulimit") {
					t.Fatalf("limit %d, %d ahead: %v", limit, ahead, err)
				}
				continue
			}
			sum := d.segments + d.tables + d.peers + d.api + d.http + d.nbd + ahead
			if uint64(sum)+min(maxOtherFiles, limit/4) > limit {
				t.Fatalf("limit %d, %d ahead: %+v is more", limit, ahead, d)
			}
			if min(d.segments, d.tables) < 32 || min(d.peers, d.nbd) < 16 || d.api < 10 || d.http < 5 {
				t.Fatalf("limit %d, %d ahead: %+v leaves somebody nothing", limit, ahead, d)
			}
		}
	}
	for _, limit := range []uint64{1 << 20, 1<<64 - 1} {
		d, err := shareDescriptors(limit, 4096, 8)
		if want := (descriptors{limit: limit, segments: maxStoreFiles, tables: maxStoreFiles, peers: maxPeerConnections,
			api: maxAPIConnections, http: maxHTTPConnections, nbd: 4096}); err != nil || d != want {
			t.Errorf("limit %d: %+v, %v; want %+v", limit, d, err, want)
		}
	}
}
