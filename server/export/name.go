package export

import (
	"fmt"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/volume"
)

// ParseName reads the name of an export: that of a volume, then, after a question mark, how it is to be used.
//
//	NAME                            exclusively: nobody else may have it
//	NAME?access=shared              beside others who share it too
//	NAME?read-only
//	NAME?access=shared&read-only
//
// KindNotFound for names that no volume can have, KindInvalid for options that are not known.
func ParseName(export string) (name string, options volume.OpenOptions, err error) {
	name, rest, has := strings.Cut(export, "?")
	if err := storage.CheckVolumeName(name); err != nil {
		return "", options, storage.E("open export", storage.KindNotFound, "", err)
	}
	if !has {
		return name, options, nil
	}
	for option := range strings.SplitSeq(rest, "&") {
		switch option {
		case "access=shared":
			options.Shared = true
		case "access=exclusive":
			options.Shared = false
		case "read-only":
			options.ReadOnly = true
		default:
			return "", options, storage.E("open export", storage.KindInvalid, "volume "+name,
				fmt.Errorf("option %s is not known; use access=shared, access=exclusive or read-only, with & between them", strconv.Quote(option)))
		}
	}
	return name, options, nil
}
