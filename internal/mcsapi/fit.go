package mcsapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// lack is something that an object may say and a CRD has no room for.
type lack struct {
	name string
	path []int // field by field; a list on the way means each of its elements
	keep int   // as many elements of the list at the end there is room for; 0: the field goes
}

func (l lack) String() string {
	if l.keep > 0 {
		return fmt.Sprintf("more than %d of %s", l.keep, l.name)
	}
	return l.name
}

// Fit takes out of an object what the API server would drop or refuse. Nothing is taken out while it is not known.
func (a *API) Fit(object client.Object) {
	k := a.kind(object)
	if k == nil {
		return
	}
	now, _ := k.current()
	for _, l := range now.lacks {
		l.remove(reflect.ValueOf(object).Elem(), l.path)
	}
}

// remove changes nothing that the object shares with others: lists on the way are made anew.
func (l lack) remove(from reflect.Value, path []int) {
	switch {
	case from.Kind() == reflect.Pointer && len(path) > 0:
		if !from.IsNil() {
			own := reflect.New(from.Type().Elem())
			own.Elem().Set(from.Elem())
			from.Set(own)
			l.remove(own.Elem(), path)
		}
	case from.Kind() == reflect.Slice && len(path) > 0:
		if from.Len() == 0 {
			return
		}
		own := reflect.MakeSlice(from.Type(), from.Len(), from.Len())
		reflect.Copy(own, from)
		from.Set(own)
		for i := range own.Len() {
			l.remove(own.Index(i), path)
		}
	case len(path) > 0:
		l.remove(from.Field(path[0]), path[1:])
	case l.keep == 0:
		from.SetZero()
	case from.Len() > l.keep:
		from.Set(from.Slice3(0, l.keep, l.keep))
	}
}

// lacking is what the type of an object has and the schema has not. What API servers keep of every object is left out.
func lacking(object client.Object, crd *apiextensionsv1.CustomResourceDefinition, validation *apiextensionsv1.CustomResourceValidation) []lack {
	if crd.Spec.PreserveUnknownFields || validation == nil || validation.OpenAPIV3Schema == nil {
		return nil
	}
	var all []lack
	t := reflect.TypeOf(object).Elem()
	for i := range t.NumField() {
		if field := t.Field(i); !field.Anonymous {
			all = append(all, lackingField(field, validation.OpenAPIV3Schema, "", []int{i})...)
		}
	}
	return all
}

func lackingField(field reflect.StructField, schema *apiextensionsv1.JSONSchemaProps, prefix string, path []int) []lack {
	if keepsUnknown(schema) {
		return nil
	}
	tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	property, ok := schema.Properties[tag]
	if !ok {
		return []lack{{name: prefix + tag, path: path}}
	}
	return lackingIn(field.Type, &property, prefix+tag, path)
}

func lackingIn(t reflect.Type, schema *apiextensionsv1.JSONSchemaProps, name string, path []int) []lack {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var all []lack
	switch {
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Marshaler]()): // a time: one value to the schema
	case t.Kind() == reflect.Struct:
		for i := range t.NumField() {
			all = append(all, lackingField(t.Field(i), schema, name+".", append(path[:len(path):len(path)], i))...)
		}
	case t.Kind() == reflect.Slice:
		// Two are enough for every list that a CRD bounds: there are two families of addresses.
		if schema.MaxItems != nil && *schema.MaxItems == 1 {
			all = append(all, lack{name: name, path: path, keep: 1})
		}
		if schema.Items != nil && schema.Items.Schema != nil && t.Elem().Kind() == reflect.Struct {
			all = append(all, lackingIn(t.Elem(), schema.Items.Schema, name, path)...)
		}
	}
	return all
}

// keepsUnknown says whether an API server keeps fields that a schema does not name.
func keepsUnknown(schema *apiextensionsv1.JSONSchemaProps) bool {
	return schema.XPreserveUnknownFields != nil && *schema.XPreserveUnknownFields ||
		schema.AdditionalProperties != nil && (schema.AdditionalProperties.Allows || schema.AdditionalProperties.Schema != nil)
}
