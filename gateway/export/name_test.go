package export_test

import (
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/export"
	"github.com/storaged/storaged/gateway/volume"
)

func TestParseName(t *testing.T) {
	for name, want := range map[string]volume.OpenOptions{
		"data":                                 {},
		"data?access=exclusive":                {Access: storage.AccessExclusive},
		"data?access=shared":                   {Access: storage.AccessShared},
		"data?access=shared&read-only":         {Access: storage.AccessShared, ReadOnly: true},
		"data?read-only":                       {ReadOnly: true},
		"data?access=readers":                  {Access: storage.AccessReaders, ReadOnly: true},
		"data?access=readers&access=exclusive": {Access: storage.AccessExclusive},
	} {
		if got, options, err := export.ParseName(name); err != nil || got != "data" || options != want {
			t.Errorf("%s: %q, %+v, %v; want %+v", name, got, options, err, want)
		}
	}
	for name, want := range map[string]error{
		"Data": storage.ErrNotFound, "": storage.ErrNotFound, "data?": storage.ErrInvalid, "data?access=": storage.ErrInvalid,
		"data?access=all": storage.ErrInvalid, "data?shared": storage.ErrInvalid, "data?read-only&": storage.ErrInvalid,
	} {
		if _, _, err := export.ParseName(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
