package storedir

import (
	"testing"
)

// Every decoder: no panic, nothing allocated for lengths that are not there, and what is accepted encodes to the same
// bytes. The values of Pebble end with a checksum, which would keep the fuzzer out: it is made right for it.

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(`{"magic":"storaged store","version":1,"cluster":"01020300-0000-0000-0000-000000000000","store":"09000000-0000-0000-0000-000000000000"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if id, err := parseIdentity(data); err == nil && (id.Cluster.IsZero() || id.Store.IsZero()) {
			t.Errorf("%q has no ids", data)
		}
	})
}
