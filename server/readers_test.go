package server

import (
	"context"
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// TestReadersOverNBD: plain NBD clients are readers by the name of the export, and keep writers of every kind out; while hosts read,
// no client writes. The line is the case for readers in the node's Attach.
func TestReadersOverNBD(t *testing.T) {
	n := startNode(t)
	shown := n.admin
	if _, err := shown.CreateVolume(t.Context(), api.NewVolume{Name: "data", SizeBytes: 8 << 20, RequestID: "r"}); err != nil {
		t.Fatal(err)
	}
	dial := func(export string) (*nbdclient.Client, error) {
		return nbdclient.Dial(t.Context(), nbdclient.Config{Network: "tcp", Address: n.listeners.nbd.Addr().String(), Export: export})
	}
	host := func(id string, access storage.Access) error {
		_, err := shown.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: "data"}, Access: access,
			Holder: storage.Holder{ID: id, Kind: storage.HolderHost}})
		return err
	}
	reader, err := dial("data?access=readers")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	if !reader.Info().ReadOnly || reader.WriteAt(t.Context(), make([]byte, 4096), 0) == nil {
		t.Error("a reader may write")
	}
	if err := reader.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("a reader reads: %v", err)
	}
	if err := host("a", storage.AccessShared); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a host that may write, beside a client that reads: %v", err)
	}
	if err := host("a", storage.AccessReaders); err != nil {
		t.Errorf("a host that reads, beside a client that reads: %v", err)
	}
	for _, export := range []string{"data", "data?access=shared", "data?access=shared&read-only"} {
		if _, err := dial(export); err == nil {
			t.Errorf("%s was opened beside readers", export)
		}
	}
	if err := shown.Detach(context.Background(), api.Detachment{Volume: storage.VolumeRef{Name: "data"}, HolderID: "a"}); err != nil {
		t.Error(err)
	}
}
