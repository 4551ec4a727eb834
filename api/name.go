package api

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	storage "github.com/storaged/storaged"
)

// VolumeName is the name of the volume that an orchestrator calls so: the same if it can be one, else what of it can be
// and a hash of the whole.
func VolumeName(name string) string {
	if storage.CheckVolumeName(name) == nil {
		return name
	}
	const hashLen = 26 // 130 bits
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if b.Len() == storage.MaxVolumeNameBytes-hashLen-1 {
			break
		}
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			r = '-'
		}
		b.WriteRune(r)
	}
	readable := strings.Trim(b.String(), "-")
	if readable == "" {
		readable = "volume"
	}
	return readable + "-" + Hashed(name, hashLen)
}

// Hashed returns n lower-case letters and digits, at most 52, that stand for s.
func Hashed(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:n]
}
