//go:build linux

package attach

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
)

// TestNetlinkOrders holds the bytes that the kernel is told, on a little-endian machine: lengths, types (nested ones with
// the flag 0x8000) and values, padded to four bytes.
func TestNetlinkOrders(t *testing.T) {
	for name, tc := range map[string]struct {
		order nbdOrder
		want  string
	}{
		"connect": {nbdOrder{sizeBytes: 1 << 30, blockBytes: 512, dead: time.Hour, serverFlags: 0x16d,
			sockets: []uint32{7, 8}, backend: "storaged/db"}, `
			0c00 0200 0000004000000000
			0c00 0300 0002000000000000
			0c00 0500 6d01000000000000
			0c00 0800 100e000000000000
			1c00 0780 0c00 0180 0800 0100 07000000 0c00 0180 0800 0100 08000000
			1000 0a00 73746f72616765642f646200`},
		"reconfigure": {nbdOrder{index: 3, hasIndex: true, sockets: []uint32{9}, backend: "storaged/db"}, `
			0800 0100 03000000
			1000 0780 0c00 0180 0800 0100 09000000
			1000 0a00 73746f72616765642f646200`},
		"let go":     {nbdOrder{index: 3, hasIndex: true, hasClosing: true, closing: true}, `0800 0100 03000000 0c00 0600 0200000000000000`},
		"keep":       {nbdOrder{index: 3, hasIndex: true, hasClosing: true}, `0800 0100 03000000 0c00 0600 0000000000000000`},
		"disconnect": {nbdOrder{hasIndex: true}, `0800 0100 00000000`},
	} {
		got, err := tc.order.encode()
		want := strings.Join(strings.Fields(tc.want), "")
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%s: %v\n got %x\nwant %s", name, err, got, want)
		}
	}
}

func TestIndexOfAnswer(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(nbdAttrIndex, 12)
	good, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := decodeIndex(good); err != nil || n != 12 {
		t.Errorf("%d, %v; want 12", n, err)
	}
	for _, bad := range [][]byte{nil, {1}, good[:6], {8, 0, 2, 0, 1, 0, 0, 0}} {
		if n, err := decodeIndex(bad); err == nil {
			t.Errorf("%x: index %d, want an error", bad, n)
		}
	}
}
