package peer

import (
	"fmt"

	storage "github.com/storaged/storaged"
)

// known are the versions of the peer protocol that this code speaks.
var known = versions{min: 2, max: 2}

// versions is a range of versions of the peer protocol, both ends included. A range has 0 < min <= max, the zero value is none.
type versions struct{ min, max uint16 }

// common returns the highest version that is in both ranges; 0: there is none.
func (v versions) common(other versions) uint16 {
	if highest := min(v.max, other.max); highest >= max(v.min, other.min) {
		return highest
	}
	return 0
}

// String returns the range with its noun.
func (v versions) String() string {
	if v.min == v.max {
		return fmt.Sprintf("version %d", v.min)
	}
	return fmt.Sprintf("versions %d to %d", v.min, v.max)
}

// versionsError says that two ends have no version in common, and which of them is to be upgraded.
func versionsError(own, others versions) error {
	older := "this side"
	if others.max < own.min {
		older = "the peer"
	}
	return storage.E("", storage.KindUnsupported, "", fmt.Errorf(
		"the peer speaks %v of the peer protocol, this side %v: upgrade %s", others, own, older))
}
