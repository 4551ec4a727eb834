package export

import (
	"fmt"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
)

// ParseName reads the name of an export: that of a volume, then, after a question mark, how it is to be used.
//
//	NAME                            exclusively: nobody else may have it
//	NAME?access=shared              beside others who share it too
//	NAME?read-only
//	NAME?access=shared&read-only
//	NAME?access=readers             read-only, beside others who only read too
//
// KindNotFound for names that no volume can have, as clients expect of exports that do not exist; KindInvalid for options that are not known.
func ParseName(export string) (name string, options volume.OpenOptions, err error) {
	name, rest, has := strings.Cut(export, "?")
	if err := storage.CheckVolumeName(name); err != nil {
		return "", options, storage.E("open export", storage.KindNotFound, "", err)
	}
	if !has {
		return name, options, nil
	}
	for option := range strings.SplitSeq(rest, "&") {
		access, is := strings.CutPrefix(option, "access=")
		switch {
		case is && storage.Access(access).Valid():
			options.Access = storage.Access(access)
		case option == "read-only":
			options.ReadOnly = true
		default:
			return "", options, storage.E("open export", storage.KindInvalid, "volume "+name,
				fmt.Errorf("option %s is not known; use access=shared, access=readers, access=exclusive or read-only, with & between them", strconv.Quote(option)))
		}
	}
	options.ReadOnly = options.ReadOnly || options.Access == storage.AccessReaders
	return name, options, nil
}
