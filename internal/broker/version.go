package broker

import (
	"strconv"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// NextVersion is the version of a record that is written now: the time, in milliseconds since 1970, or one more than the
// previous version where that is not later, so that it never falls for one record. Previous is the annotation
// v1alpha1.AnnotationVersion of the record as it is, "" for a new one.
func NextVersion(previous string, now time.Time) string {
	return strconv.FormatInt(max(now.UnixMilli(), parseVersion(previous)+1), 10)
}

// WrittenAt is when a record was written, by its version; the zero of Unix time where it has none.
func WrittenAt(record client.Object) time.Time { return time.UnixMilli(versionOf(record)) }

// versionOf is the version of a record; 0, which is before all others, where it has none that can be read. Nobody writes one on a
// ClusterSet, whose writer is a person or Helm: there it is the generation, which the API server counts, and before that the time
// at which the API server made the object, since one that is deleted and made anew begins with 1 again.
func versionOf(record client.Object) int64 {
	if _, ok := record.(*v1alpha1.ClusterSet); ok {
		return max(0, record.GetCreationTimestamp().Unix())<<generationBits + min(record.GetGeneration(), 1<<generationBits-1)
	}
	return parseVersion(record.GetAnnotations()[v1alpha1.AnnotationVersion])
}

// generationBits are enough for a change every second for half a year.
const generationBits = 24

// maxVersion bounds what counts as a version: beyond it no next one could be told from it.
const maxVersion = 1 << 62

func parseVersion(text string) int64 {
	version, err := strconv.ParseInt(text, 10, 64)
	if err != nil || version < 0 || version > maxVersion {
		return 0
	}
	return version
}
